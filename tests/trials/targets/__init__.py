"""Files that strangers write, each with how a good one is made, what is done to it, and what its reader may answer."""
