"""Words of the simulated news service's headlines (see `ctxrec.datasets.news`)."""

from __future__ import annotations

NEWS_TOPICS = {
    "football": ["striker", "goalkeeper", "cup final", "transfer fee", "head coach", "penalty"],
    "tennis": ["grand slam", "top seed", "tie-break", "clay court", "wild card", "doubles title"],
    "elections": ["opposition leader", "exit poll", "ballot count", "coalition talks", "campaign budget", "turnout"],
    "economy": ["central bank", "interest rate", "inflation", "labour market", "export figures", "budget deficit"],
    "markets": ["share price", "merger", "quarterly profit", "bond yields", "oil price", "takeover bid"],
    "technology": ["chip maker", "software update", "start-up", "smartphone", "data centre", "robot"],
    "science": ["space telescope", "vaccine trial", "fossil", "climate model", "particle detector", "gene study"],
    "health": ["hospital ward", "flu season", "nurses", "surgery", "mental health", "drug price"],
    "weather": ["storm warning", "heat wave", "flood", "snowfall", "drought", "hurricane"],
    "crime": ["robbery", "court ruling", "detectives", "fraud case", "witness", "prison sentence"],
    "culture": ["film festival", "bestseller", "orchestra", "art auction", "museum", "theatre premiere"],
    "travel": ["airline strike", "night train", "island resort", "airport queue", "cruise ship", "visa rules"],
}
NEWS_PLACES = ["Arlen", "Brisk Bay", "Carrow", "Dunholm", "Esk Valley", "Fairport", "Grant County", "Harlow"]
NEWS_VERBS = ["overshadows", "follows", "threatens", "revives", "puzzles", "delays", "defies", "meets"]
