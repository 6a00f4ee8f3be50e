"""OpenVLA-OFT: model, processor, checkpoint layout, LoRA. The only package importing tokenizers and peft."""

from vla_rl.policy.openvla_oft.checkpoint import load_pretrained
from vla_rl.policy.openvla_oft.load import load_policy
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policy.save import save_trained

__all__ = ["OpenVLAOFTPolicy", "load_policy", "load_pretrained", "save_trained"]
