"""OpenVLA-OFT: model, processor, checkpoint layout, LoRA. The only package importing tokenizers and peft."""

from vla_rl.policy.checkpoint import load_policy, save_policy, save_trained
from vla_rl.policy.policy import OpenVLAOFTPolicy

__all__ = ["OpenVLAOFTPolicy", "load_policy", "save_policy", "save_trained"]
