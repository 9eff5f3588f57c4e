"""What a checkpoint costs training, beside torch.save, DeepSpeed's own and torch's DCP."""
