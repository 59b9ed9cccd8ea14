"""How the demo checkpoint is made: data generators, tokenizer, training, export and evaluation."""
