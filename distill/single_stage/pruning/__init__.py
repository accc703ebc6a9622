"""The verb `prune`: what it reads, learns from, measures, tells and writes."""
