"""What every stage of a run shares: its folder, records, judging and timing."""
