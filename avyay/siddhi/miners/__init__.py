"""Where complaints come from: one file for each source, all behind `base.Miner`."""
