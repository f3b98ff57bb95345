"""What a run leaves for people: report.html and the model card."""
