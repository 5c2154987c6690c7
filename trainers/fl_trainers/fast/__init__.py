"""The same training step with less of it thrown away: no padding, logits only where the loss counts, kernels launched at once.

Each part is a public hook of transformers or torch; nothing is patched. choice.py decides, and says why.
"""
