"""What goes into the HTML report: reports of other commands read back, models looked at, a decision, sections."""
