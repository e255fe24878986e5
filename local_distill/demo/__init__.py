"""A real model without a model hub, a fine-tune that makes it forget, and the settings that bring it back."""
