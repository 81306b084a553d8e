"""Who proposes the experiments of a campaign: one module per proposer, all behind `port.Proposer`."""
