"""From measurements to a verdict: statistics, the rule, baselines, many gates at once."""
