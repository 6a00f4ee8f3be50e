"""OpenVLA-OFT: model, processor, checkpoint layout, LoRA. The only package importing tokenizers and peft."""

from vla_rl.policy.checkpoint import load_pretrained, save_policy, save_trained
from vla_rl.policy.load import load_policy
from vla_rl.policy.policy import OpenVLAOFTPolicy

__all__ = ["OpenVLAOFTPolicy", "load_policy", "load_pretrained", "save_policy", "save_trained"]
