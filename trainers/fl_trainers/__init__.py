"""The shared trainer: one program for every lane, started inside an image or an environment of `fl`."""
