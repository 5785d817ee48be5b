"""What `adadistill data VERB` does, a file for each verb."""
