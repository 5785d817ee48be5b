"""Images by record id: RecordIO files, folders and Arrow sets, their indices, seals and labels."""
