"""Which emoji the captions speak of, and how they call them where the package's name is not what one would say."""

from __future__ import annotations

CHOSEN = {
    "face": (
        "grinning face|grinning face with smiling eyes|smiling face with open mouth and cold sweat|face with tears of joy|"
        "slightly smiling face|upside-down face|winking face|smiling face with smiling eyes|smiling face with halo|"
        "smiling face with smiling eyes and three hearts|smiling face with heart-shaped eyes|grinning face with star eyes|"
        "face throwing a kiss|kissing face with closed eyes|face savouring delicious food|face with stuck-out tongue|"
        "face with stuck-out tongue and winking eye|money-mouth face|hugging face|thinking face|saluting face|"
        "face with finger covering closed lips|zipper-mouth face|face with one eyebrow raised|neutral face|face without mouth|"
        "smirking face|unamused face|face with rolling eyes|grimacing face|lying face|pensive face|sleepy face|drooling face|"
        "sleeping face|face with medical mask|face with thermometer|face with head-bandage|nauseated face|sneezing face|"
        "overheated face|freezing face|dizzy face|shocked face with exploding head|face with cowboy hat|"
        "face with party horn and party hat|disguised face|smiling face with sunglasses|nerd face|face with monocle|"
        "confused face|worried face|frowning face|astonished face|flushed face|face with pleading eyes|crying face|"
        "loudly crying face|face screaming in fear|angry face|pouting face|face with look of triumph|"
        "serious face with symbols covering mouth"
    ),
    "figure": (
        "smiling face with horns|imp|skull|pile of poo|clown face|ghost|extraterrestrial alien|alien monster|robot face|"
        "see-no-evil monkey|hear-no-evil monkey|speak-no-evil monkey"
    ),
    "cat": (
        "smiling cat face with open mouth|grinning cat face with smiling eyes|cat face with tears of joy|"
        "smiling cat face with heart-shaped eyes|cat face with wry smile|kissing cat face with closed eyes|weary cat face|"
        "crying cat face|pouting cat face"
    ),
    "heart": (
        "sparkling heart|broken heart|heart with arrow|heart with ribbon|heavy black heart|pink heart|orange heart|yellow heart|"
        "green heart|blue heart|purple heart|brown heart|black heart|white heart"
    ),
    "animal face": (
        "monkey face|dog face|wolf face|fox face|raccoon|cat face|lion face|tiger face|horse face|unicorn face|zebra face|"
        "cow face|pig face|mouse face|rabbit face|hamster face|bear face|polar bear|koala|panda face|frog face|dragon face"
    ),
    "animal": (
        "gorilla|dog|poodle|cat|cow|pig|sheep|giraffe face|elephant|rhinoceros|hippopotamus|hedgehog|bat|sloth|kangaroo|"
        "hatching chick|baby chick|chicken|penguin|duck|owl|eagle|flamingo|parrot|swan|crocodile|turtle|snake|dragon|t-rex|"
        "spouting whale|dolphin|fish|tropical fish|shark|octopus|crab|shrimp|snail|butterfly|bug|ant|honeybee|lady beetle|spider"
    ),
    "plant": (
        "cherry blossom|rose|sunflower|tulip|cactus|evergreen tree|deciduous tree|palm tree|four leaf clover|maple leaf|mushroom"
    ),
    "food": (
        "grapes|melon|watermelon|tangerine|lemon|banana|pineapple|mango|red apple|green apple|pear|peach|cherries|strawberry|"
        "blueberries|kiwifruit|tomato|coconut|avocado|aubergine|potato|carrot|ear of maize|hot pepper|cucumber|broccoli|garlic|"
        "onion|bread|croissant|pretzel|cheese wedge|meat on bone|poultry leg|hamburger|french fries|slice of pizza|hot dog|taco|"
        "egg|popcorn|rice ball|sushi|soft ice cream|ice cream|doughnut|cookie|birthday cake|cupcake|lollipop|candy|"
        "chocolate bar|honey pot|baby bottle|hot beverage|wine glass|cocktail glass|beer mug|cup with straw"
    ),
    "hand": (
        "waving hand sign|raised hand|ok hand sign|victory hand|thumbs up sign|thumbs down sign|raised fist|fisted hand sign|"
        "sign of the horns|i love you hand sign|call me hand|clapping hands sign|person with folded hands|flexed biceps|ear|nose|"
        "foot|white right pointing backhand index|white left pointing backhand index|white up pointing backhand index|"
        "white down pointing backhand index"
    ),
    "sky": (
        "sun with face|full moon with face|crescent moon|white medium star|glowing star|cloud|rainbow|fire|droplet|snowman|"
        "snowflake|high voltage sign|umbrella with rain drops|earth globe americas|ringed planet"
    ),
    "vehicle": (
        "bus|taxi|automobile|police car|fire engine|ambulance|tractor|bicycle|motor scooter|sailboat|airplane|rocket|"
        "flying saucer|steam locomotive|helicopter"
    ),
    "thing": (
        "soccer ball|baseball|volleyball|american football|balloon|wrapped present|christmas tree|trophy|teddy bear|game die|"
        "jack-o-lantern|party popper|direct hit|guitar|trumpet|crown|top hat|t-shirt|jeans|dress|high-heeled shoe|ring|gem stone|"
        "bell|key|lock|electric light bulb|candle|closed book|camera|television|mobile phone|alarm clock|hourglass|"
        "closed umbrella|bomb|hammer|axe|black scissors|pencil|envelope|magnet|door|chair|left-pointing magnifying glass|"
        "sunglasses|school satchel"
    ),
}

SPOKEN = {
    "heavy black heart": "red heart",
    "fisted hand sign": "oncoming fist",
    "white right pointing backhand index": "hand pointing right",
    "white left pointing backhand index": "hand pointing left",
    "white up pointing backhand index": "hand pointing up",
    "white down pointing backhand index": "hand pointing down",
    "person with folded hands": "folded hands",
    "sign of the horns": "hand showing horns",
    "i love you hand sign": "love you hand",
    "lady beetle": "ladybug",
    "extraterrestrial alien": "alien",
    "white medium star": "star",
    "ear of maize": "ear of corn",
    "electric light bulb": "light bulb",
    "black scissors": "pair of scissors",
    "left-pointing magnifying glass": "magnifying glass",
    "hot beverage": "cup of coffee",
    "high voltage sign": "lightning bolt",
    "automobile": "car",
    "school satchel": "school bag",
    "giraffe face": "giraffe",
    "earth globe americas": "earth globe",
    "t-rex": "dinosaur",
}


_PLURALS = (
    "grapes",
    "cherries",
    "blueberries",
    "jeans",
    "sunglasses",
    "french fries",
    "clapping hands",
    "folded hands",
    "flexed biceps",
    "love you hand",
)


def spoken(name: str) -> str:
    """The package's name as a caption says it: "waving hand sign" is a waving hand."""
    return SPOKEN.get(name) or name.removesuffix(" sign").removesuffix(" symbol")


def with_article(noun: str) -> str:
    """ "an owl", "a dog"; what is said without an article stays as it is, also with a colour before it."""
    if noun.endswith(_PLURALS):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
