"""A trained pipeline as a model repository on the Hugging Face Hub: code, card, upload."""
