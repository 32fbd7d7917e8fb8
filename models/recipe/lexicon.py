"""The words and facts that the pretraining text is composed of.

Nothing here repeats a question of the demo's fine-tuning conversations, so that
their held-out loss stays an honest measure (`tests/test_tiny_model.py` checks it).
"""

from typing import Final

PEOPLE: Final = (
    "Ada", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kira", "Leo",
    "Mia", "Noah",
    "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tara", "Uma", "Victor", "Wendy", "Yusuf", "Zoe", "Anna",
    "Boris", "Cora",
    "Daniel", "Emma", "Finn", "Hana", "Ivan", "Julia", "Karl", "Lena", "Max", "Nina", "Omar", "Pia",
)  # fmt: skip
PLACES: Final = (
    "garden", "kitchen", "forest", "library", "market", "harbour", "school", "village", "city", "park",
    "museum", "station", "farm", "beach", "river", "mountain", "workshop", "bakery", "theatre", "office",
    "hospital", "street", "bridge", "castle", "island", "lake", "valley", "tower", "hotel", "restaurant",
)  # fmt: skip
THINGS: Final = (
    "book", "lamp", "basket", "bicycle", "letter", "map", "boat", "clock", "chair", "window", "camera",
    "guitar",
    "piano", "ball", "kite", "key", "box", "coat", "hat", "cup", "bottle", "blanket", "pencil",
    "computer", "phone",
    "painting", "stone", "flower", "tree", "ladder", "hammer", "ticket", "coin", "mirror", "candle", "bell",
)  # fmt: skip
FOODS: Final = (
    "bread", "soup", "rice", "an apple", "cheese", "a salad", "pasta", "fish", "a cake", "honey", "an orange",
    "eggs", "potatoes", "tomatoes", "chocolate", "tea", "coffee", "milk", "water", "lemonade", "a sandwich",
)  # fmt: skip
ADJECTIVES: Final = (
    "small", "large", "old", "new", "bright", "dark", "quiet", "loud", "warm", "cold", "heavy", "light",
    "beautiful",
    "simple", "strange", "famous", "hidden", "broken", "golden", "silver", "red", "blue", "green",
    "yellow", "white",
    "black", "long", "short", "deep", "empty", "clean", "soft", "hard", "fast", "slow", "sweet", "wise",
    "ancient",
)  # fmt: skip
FEELINGS: Final = (
    "happy", "sad", "tired", "proud", "curious", "afraid", "calm", "surprised", "hopeful", "lonely",
    "excited",
    "grateful", "angry", "brave",
)  # fmt: skip
WEATHER: Final = ("sunny", "rainy", "windy", "cloudy", "snowy", "foggy", "stormy", "warm", "cold", "clear")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
COLOURS: Final = {
    "snow": "white", "coal": "black", "grass": "green", "a lemon": "yellow", "a carrot": "orange",
    "milk": "white",
    "a ripe tomato": "red", "a plum": "purple", "the sea": "blue", "chocolate": "brown",
    "an elephant": "grey",
}  # fmt: skip
NUMBER_WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
# country: (capital, continent, language)
COUNTRIES: Final = {
    "Peru": ("Lima", "South America", "Spanish"), "Chile": ("Santiago", "South America", "Spanish"),
    "Colombia": ("Bogota", "South America", "Spanish"), "Uruguay": ("Montevideo", "South America", "Spanish"),
    "Portugal": ("Lisbon", "Europe", "Portuguese"), "Norway": ("Oslo", "Europe", "Norwegian"),
    "Sweden": ("Stockholm", "Europe", "Swedish"), "Finland": ("Helsinki", "Europe", "Finnish"),
    "Denmark": ("Copenhagen", "Europe", "Danish"), "Poland": ("Warsaw", "Europe", "Polish"),
    "Austria": ("Vienna", "Europe", "German"), "Hungary": ("Budapest", "Europe", "Hungarian"),
    "Ireland": ("Dublin", "Europe", "English"), "Iceland": ("Reykjavik", "Europe", "Icelandic"),
    "Belgium": ("Brussels", "Europe", "Dutch"), "Croatia": ("Zagreb", "Europe", "Croatian"),
    "India": ("New Delhi", "Asia", "Hindi"), "Thailand": ("Bangkok", "Asia", "Thai"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese"), "Nepal": ("Kathmandu", "Asia", "Nepali"),
    "Iran": ("Tehran", "Asia", "Persian"), "Mongolia": ("Ulaanbaatar", "Asia", "Mongolian"),
    "Morocco": ("Rabat", "Africa", "Arabic"), "Ghana": ("Accra", "Africa", "English"),
    "Ethiopia": ("Addis Ababa", "Africa", "Amharic"), "Senegal": ("Dakar", "Africa", "French"),
    "Nigeria": ("Abuja", "Africa", "English"), "Tunisia": ("Tunis", "Africa", "Arabic"),
    "Cuba": ("Havana", "North America", "Spanish"), "Jamaica": ("Kingston", "North America", "English"),
    "Panama": ("Panama City", "North America", "Spanish"),
    "New Zealand": ("Wellington", "Oceania", "English"),
    "Fiji": ("Suva", "Oceania", "Fijian"),
}  # fmt: skip
# animal: (group, home, food, legs)
ANIMALS: Final = {
    "horse": ("mammal", "on farms and plains", "grass and hay", "four"),
    "owl": ("bird", "in forests", "mice", "two"),
    "salmon": ("fish", "in rivers and the sea", "small fish", "no"),
    "frog": ("amphibian", "near ponds", "insects", "four"),
    "spider": ("arachnid", "in quiet corners", "insects", "eight"),
    "bee": ("insect", "in a hive", "nectar", "six"),
    "wolf": ("mammal", "in forests and mountains", "deer", "four"),
    "eagle": ("bird", "on high cliffs", "fish", "two"),
    "whale": ("mammal", "in the ocean", "plankton and squid", "no"),
    "ant": ("insect", "in a nest", "seeds", "six"),
    "penguin": ("bird", "on cold coasts", "fish", "two"),
    "snake": ("reptile", "in warm countries", "mice", "no"),
    "rabbit": ("mammal", "in fields", "grass and leaves", "four"),
    "duck": ("bird", "on lakes", "plants", "two"),
    "tortoise": ("reptile", "in dry land", "leaves", "four"),
    "camel": ("mammal", "in the desert", "dry plants", "four"),
    "bear": ("mammal", "in forests", "berries and fish", "four"),
    "shark": ("fish", "in the ocean", "fish", "no"),
    "cat": ("mammal", "in houses", "meat", "four"), "dog": ("mammal", "in houses", "meat", "four"),
    "butterfly": ("insect", "in meadows", "nectar", "six"),
    "lizard": ("reptile", "on warm stones", "insects", "four"),
}  # fmt: skip
ANIMAL_NAMES: Final = tuple(ANIMALS)
OPPOSITES: Final = {
    "hot": "cold", "big": "small", "early": "late", "up": "down", "open": "closed", "full": "empty",
    "rich": "poor",
    "wet": "dry", "strong": "weak", "young": "old", "happy": "sad", "easy": "difficult", "near": "far",
    "high": "low",
    "first": "last", "true": "false", "day": "night", "buy": "sell", "win": "lose", "begin": "end",
    "love": "hate",
}  # fmt: skip
DEFINITIONS: Final = {
    "harbour": "a place on the coast where ships can stay safely",
    "desert": "a large dry area of land where very little rain falls",
    "volcano": "a mountain with an opening through which hot melted rock can come out",
    "orchestra": "a large group of musicians who play together",
    "telescope": "an instrument that makes distant objects look closer",
    "bridge": "a structure that carries a road or a path across a river",
    "glacier": "a large mass of ice that moves slowly down a valley",
    "patience": "the ability to wait calmly for something",
    "courage": "the strength to do something although you are afraid",
    "energy": "the ability to do work or to cause change",
    "planet": "a large round object that moves around a star",
    "star": "a huge ball of hot gas that gives off light and heat",
    "cell": "the smallest living part of every plant and animal",
    "molecule": "a group of two or more atoms that are joined together",
    "temperature": "a measure of how hot or cold something is",
    "friction": "the force that slows two surfaces when they rub against each other",
    "pressure": "the force that acts on a certain area",
    "electricity": "a form of energy that comes from moving electrons",
    "magnet": "a piece of metal that can attract iron",
    "rhythm": "a regular pattern of sounds or movements",
    "recipe": "a list of steps and ingredients for preparing food",
    "democracy": "a form of government in which the people choose their leaders",
    "history": "the study of events that happened in the past",
    "biology": "the science of living things",
    "chemistry": "the science of substances and how they change",
    "physics": "the science of matter, force and energy",
    "algorithm": "a list of clear steps for solving a problem",
    "program": "a set of instructions that tells a computer what to do",
    "poem": "a short piece of writing that uses rhythm and images",
    "novel": "a long written story about people and events that are not real",
    "evaporation": "the process by which a liquid turns into a gas",
    "erosion": "the process by which wind and water slowly carry soil and rock away",
    "digestion": "the process by which the body breaks food down so that it can use it",
    "generous": "being willing to give and to share with others",
    "honest": "telling the truth and not hiding important things",
    "careful": "paying attention in order to avoid mistakes or danger",
}  # fmt: skip
# Question and answer pairs of general knowledge.
FACTS: Final = (
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What do plants need to grow?", "Plants need light, water, air and good soil to grow."),
    ("What is ice made of?", "Ice is made of frozen water."),
    ("Where does the sun rise?", "The sun rises in the east and sets in the west."),
    ("What is the chemical symbol for oxygen?", "The chemical symbol for oxygen is O."),
    ("What is the chemical symbol for carbon?", "The chemical symbol for carbon is C."),
    ("What is the chemical symbol for copper?", "The chemical symbol for copper is Cu."),
    ("Who wrote 'Don Quixote'?", "'Don Quixote' was written by Miguel de Cervantes."),
    ("Who wrote 'Faust'?", "'Faust' was written by Johann Wolfgang von Goethe."),
    ("Who wrote 'War and Peace'?", "'War and Peace' was written by Leo Tolstoy."),
    ("Who composed 'The Magic Flute'?", "'The Magic Flute' was composed by Wolfgang Amadeus Mozart."),
    ("Who painted 'Guernica'?", "'Guernica' was painted by Pablo Picasso."),
    ("Who discovered radium?", "Radium was discovered by Marie and Pierre Curie in 1898."),
    (
        "Who invented the printing press in Europe?",
        "Johannes Gutenberg is credited with inventing the printing press.",
    ),
    (
        "Who invented the telephone?",
        "Alexander Graham Bell is often credited with inventing the telephone in 1876.",
    ),
    ("Which planet has bright rings?", "Saturn is the planet that is known for its bright rings."),
    ("Which planet is the farthest from the sun?", "Neptune is the planet that is farthest from the sun."),
    ("What is the longest river in Africa?", "The Nile is the longest river in Africa."),
    ("What is the largest country in South America?", "The largest country in South America is Brazil."),
    ("What is the currency of Sweden?", "The currency of Sweden is the Swedish krona."),
    ("What is the currency of India?", "The currency of India is the Indian rupee."),
    ("What is the main ingredient of bread?", "The main ingredient of bread is flour."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("What does the brain do?", "The brain controls the body, stores memories and lets us think."),
    ("What do the lungs do?", "The lungs take oxygen from the air and release carbon dioxide."),
    ("What do bees make?", "Bees make honey and wax from the nectar of flowers."),
    ("Why does it rain?", "Water rises from the sea as vapor, cools, forms clouds and falls down as rain."),
    (
        "Why do we have seasons?",
        "The Earth is tilted, so each half gets more sunlight in summer and less in winter.",
    ),
    ("Why does the moon shine?", "The moon does not make light. It reflects the light of the sun."),
    ("What causes the tides?", "Tides are caused mostly by the pull of the moon on the ocean."),
    ("What causes wind?", "Wind is caused by differences in air pressure between two places."),
    ("What year did the Berlin Wall fall?", "The Berlin Wall fell in 1989."),
    ("What year did the first World War begin?", "The first World War began in 1914."),
    ("What does CPU stand for?", "CPU stands for Central Processing Unit."),
    ("What does USA stand for?", "USA stands for United States of America."),
    ("What is the opposite of north?", "The opposite of north is south."),
    ("What is 10 squared?", "10 squared is 100."),
    ("What is the square root of 16?", "The square root of 16 is 4."),
    ("What is a synonym of quick?", "A synonym of quick is fast."),
    ("Translate 'thank you' to Spanish.", "'Thank you' in Spanish is 'Gracias'."),
    ("Translate 'water' to French.", "'Water' in French is 'eau'."),
    ("Translate 'house' to German.", "'House' in German is 'Haus'."),
)
HOW_TO: Final = {
    "make tea": ("boil some water", "put the tea in a cup", "pour the hot water over it",
    "wait for three minutes"),
    "plant a tree": ("dig a deep hole", "put the roots into it", "fill the hole with soil",
    "water the tree well"),
    "clean a window": ("mix water and a little soap", "wash the glass", "dry it with a soft cloth"),
    "learn a language": ("read a little every day", "listen to native speakers", "speak without fear"),
    "bake bread": ("mix flour, water, salt and yeast", "let the dough rest", "bake it for forty minutes"),
    "write a letter": ("greet the reader", "say what you want to say", "close with your name"),
    "solve a problem": ("understand the question", "make a plan", "carry it out", "check the result"),
    "stay healthy": ("sleep enough", "eat fruit and vegetables", "drink water", "walk every day"),
    "fix a flat tire": ("take the wheel off", "find the hole", "cover it with a patch",
    "pump air into the tire"),
    "cook rice": ("wash the rice", "add twice as much water", "cook it slowly for fifteen minutes"),
}  # fmt: skip
SMALL_TALK: Final = (
    ("Hello!", "Hello! How can I help you today?"), ("Hi there.", "Hi! It is nice to meet you."),
    ("Good evening.", "Good evening! I hope you had a pleasant day."),
    ("How are you?", "I am fine, thank you. How are you?"),
    ("What is your name?", "I am a very small language model, so you may call me Tiny."),
    ("Thank you.", "You are welcome!"),
    ("Thanks for your help.", "It was my pleasure. Ask me anything else."),
    ("Goodbye.", "Goodbye! Have a good day."), ("See you tomorrow.", "See you tomorrow! Take care."),
    ("What can you do?", "I can chat a little, tell short stories, count and try to add numbers."),
    ("Can you help me?", "Of course. Tell me what you need."),
    ("Are you a robot?", "I am a computer program that writes text."),
    ("I am tired.", "Then you should take a rest. A short walk or some sleep may help."),
    ("I am bored.", "You could read a book, call a friend or learn something new."),
    ("It is raining again.", "Rain is good for the plants. Do not forget your umbrella."),
    ("I made a mistake.", "Everyone makes mistakes. What matters is what you learn from them."),
)  # fmt: skip
SYSTEM_ROLES: Final = (
    "friendly guide", "helpful assistant", "kind teacher", "patient teacher", "helpful librarian", "gardener",
    "animal expert", "geography teacher", "writer of short stories", "calm doctor", "helpful cook",
    "science teacher",
)  # fmt: skip
JOKES: Final = (
    ("Why did the bicycle fall over?", "Because it was two tired!"),
    ("Why was the broom late?", "Because it swept in!"),
    ("What do you call a sleeping bull?", "A bulldozer!"),
    ("Why did the tomato turn red?", "Because it saw the salad dressing!"),
    ("What has hands but cannot clap?", "A clock."),
    ("What has a neck but no head?", "A bottle."),
    ("What gets wetter the more it dries?", "A towel."),
)
HAIKU: Final = (
    ("Snow falls in the night", "Rain runs down the roof", "Wind moves through the leaves",
    "Sun warms the cold stones"),
    ("The river sleeps under ice", "A small bird begins to sing", "Soft light fills the open door",
     "Old trees remember the spring"),
    ("Morning comes slowly", "Silence everywhere", "The road waits for us", "A new day begins"),
)  # fmt: skip
