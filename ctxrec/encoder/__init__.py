"""From text, images and sounds to vectors, by pretrained encoders that are frozen or tuned."""
