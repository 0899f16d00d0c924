"""upslope: policy gradients from REINFORCE to PPO."""
