"""What is minimised: margins, their statistics, and the losses that put head, centres and teacher together."""
