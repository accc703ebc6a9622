"""The verb `quantize`: what it reads, judges, remarks, draws and writes."""
