"""IJB-B and IJB-C as people own them: the original folders, or CVLface's prepared ones; one form behind both."""
