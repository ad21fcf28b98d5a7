"""Programs that run real pretrained models in eight bits, and the readers that they need."""
