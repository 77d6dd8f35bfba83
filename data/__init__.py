"""The data: text becomes documents, documents become tokens, tokens become shards, shards become batches."""
