"""Words of the simulated catalogue's titles (see `ctxrec.datasets.simulation`)."""

from __future__ import annotations

CATEGORIES = {
    "coffee and tea": ["espresso machine", "teapot", "coffee grinder", "milk frother", "kettle", "mug set"],
    "baking": ["cake tin", "rolling pin", "stand mixer", "muffin tray", "icing set", "bread oven"],
    "gardening": ["pruning shears", "garden hose", "seed tray", "watering can", "wheelbarrow", "compost bin"],
    "camping": ["two-person tent", "sleeping bag", "camp stove", "headlamp", "hiking backpack", "water filter"],
    "cycling": ["road bike helmet", "bicycle pump", "bike lock", "cycling gloves", "handlebar tape", "chain oil"],
    "running": ["running shoes", "sports watch", "compression socks", "hydration belt", "track jacket", "foam roller"],
    "swimming": ["swimming goggles", "swim cap", "training fins", "kickboard", "beach towel", "wetsuit"],
    "photography": ["camera lens", "tripod", "camera bag", "flash unit", "memory card", "lens filter"],
    "music making": ["acoustic guitar", "drum sticks", "digital piano", "guitar strings", "metronome", "violin bow"],
    "audio": ["headphones", "bookshelf speakers", "turntable", "portable radio", "soundbar", "studio microphone"],
    "gaming": ["game controller", "gaming mouse", "mechanical keyboard", "console stand", "racing wheel", "headset"],
    "board games": ["strategy board game", "chess set", "playing cards", "jigsaw puzzle", "dice set", "trivia quiz"],
    "novels": [
        "crime novel",
        "historical romance",
        "science fiction saga",
        "short stories",
        "thriller",
        "fantasy epic",
    ],
    "cookbooks": [
        "vegetarian cookbook",
        "Italian recipes",
        "barbecue guide",
        "pastry book",
        "soup recipes",
        "meal planner",
    ],
    "baby care": ["baby monitor", "stroller", "nappy bag", "feeding bottle", "cot blanket", "teething ring"],
    "pet supplies": ["dog leash", "cat litter", "aquarium pump", "bird feeder", "scratching post", "pet bed"],
    "skin care": ["face cream", "sunscreen lotion", "cleansing gel", "lip balm", "night serum", "clay mask"],
    "jewellery": ["silver necklace", "pearl earrings", "gold bracelet", "engagement ring", "charm pendant", "brooch"],
    "power tools": [
        "cordless drill",
        "circular saw",
        "sanding machine",
        "screwdriver bits",
        "jigsaw blade",
        "heat gun",
    ],
    "car parts": ["brake pads", "motor oil", "windscreen wipers", "car battery", "tyre gauge", "roof rack"],
    "lighting": ["floor lamp", "string lights", "desk lamp", "ceiling pendant", "candle holder", "night light"],
    "office": ["fountain pen", "ring binder", "paper shredder", "desk organiser", "laser printer", "notebook"],
    "bedding": ["duvet cover", "memory foam pillow", "linen sheets", "mattress topper", "wool throw", "bed runner"],
    "winter clothes": ["down jacket", "knitted scarf", "wool hat", "ski gloves", "thermal leggings", "snow boots"],
}
# What a search says of a thing; the thing is one of the category that is looked for.
SEARCHES = ["{}", "looking for a {}", "a good {} for beginners", "{} as a gift", "something like a {}"]
BRANDS = ["Alder", "Brightwater", "Corvan", "Dunmore", "Eastfield", "Fjordan", "Galano", "Hartwell"]
ADJECTIVES = [
    "compact", "classic", "lightweight", "premium", "everyday", "foldable", "handmade", "deluxe",
    "vintage", "modern", "sturdy", "soft", "bright", "quiet", "large", "small",
]  # fmt: skip
