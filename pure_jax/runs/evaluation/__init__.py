"""What the evaluation scripts share: units, responses, scores, reports."""
