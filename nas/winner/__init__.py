"""The winner: trained on its own, exported, and verified against its promise."""
