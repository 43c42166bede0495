"""Pretrained weights: reading them from runs and from the files of Hugging Face and OpenAI, and exporting them."""
