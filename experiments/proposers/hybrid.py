"""An optimizer for the numbers, a model for the structure: two proposals of three are Optuna's, the third the model's.

(A model on 30 % of the trials of CMA-ES found the best recipes of a comparison of nine methods: ferreirafabio,
autoresearch-automl, 2026.)
"""

from __future__ import annotations

import logging

from experiments.proposers.port import Answer, Exhausted, Proposer, Question
from workspace.errors import Unavailable

TURN = 3
log = logging.getLogger(__name__)


class HybridProposer:
    def __init__(self, numbers: Proposer, structure: Proposer) -> None:
        self.numbers = numbers
        self.structure = structure

    def check(self, question: Question) -> None:
        self.numbers.check(question)
        self.structure.check(question)

    def propose(self, question: Question) -> Answer:
        """A model that is away is not waited for: there are numbers to try meanwhile, and the other way round."""
        if question.number % TURN == 0:
            try:
                return self.structure.propose(question)
            except Unavailable as error:
                log.info("%s goes on with numbers: %s", question.campaign.id, error)
        try:
            return self.numbers.propose(question)
        except Exhausted:
            return self.structure.propose(question)
