"""From text to batches: ingest a corpus into token shards, validate it, and read it as lanes of windows."""
