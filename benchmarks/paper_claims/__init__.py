"""What the LENS paper claims, shown on the built-in model: masks as good as fine-tuning's, answers untouched.

    python -m benchmarks.paper_claims

trains several ways from a vision-language model to masks on the same scenes, for the same number of steps, and writes
results/paper_claims.json, docs/paper-claims.md and docs/paper-claims.png.
"""
