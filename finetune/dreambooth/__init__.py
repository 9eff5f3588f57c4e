"""DreamBooth (Ruiz et al., CVPR 2023): a few pictures of one thing, and a word for it."""
