"""Losses: pure torch, and nothing of raykd.

kinds        LOSSES, which losses there are; `TokenLoss`, one of them as a training has it
tokens       `token_losses`: any number of losses on target tokens from one chunked pass over the logits
numbers      `number_losses`: the same for a regression
divergences  their formulas: log-probabilities of student and teacher in, one value per position out
teachers     what is known of a teacher's distribution: all of it, its top-k, tokens drawn from it
logits       logits as hidden states and an output layer, multiplied out a chunk at a time
features     losses on hidden states and attention

A term is a sum and its denominator, so that the loop can divide once, by the denominator of the whole global step
(all workers, all micro-batches).
"""
