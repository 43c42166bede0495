"""What stands in place of a target that asks for nothing."""

# Padding, a prompt, a token that is not masked: losses and figures leave it out, as everywhere in torch.
IGNORE_INDEX = -100
