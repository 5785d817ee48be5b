"""TinyFace: closed-set identification of low-resolution faces among 153,428 distractors."""
