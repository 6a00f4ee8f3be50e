"""OpenVLA-OFT: model, processor, checkpoint layout, LoRA. The only package importing tokenizers and peft."""

from vla_rl.policy.openvla_oft.checkpoint import load_pretrained, save_policy, save_trained
from vla_rl.policy.openvla_oft.load import load_policy
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy

__all__ = ["OpenVLAOFTPolicy", "load_policy", "load_pretrained", "save_policy", "save_trained"]
