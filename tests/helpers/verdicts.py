"""Pairs of rows that look alike, with a person's verdict."""

# A pair is easiest to judge with one text below the other.
# ruff: noqa: E501

from __future__ import annotations

Texts = tuple[str, str]
Pairs = dict[str, tuple[Texts, Texts]]

LONG = "It is a matter of how the parts of the whole thing work together in practice."


def _asked(*pairs: tuple[str, str], answer: str = LONG) -> list[tuple[Texts, Texts]]:
    """Return pairs of rows with the same answer to two questions."""
    return [((one, answer), (other, answer)) for one, other in pairs]


def _answered(prompt: str, *pairs: tuple[str, str]) -> list[tuple[Texts, Texts]]:
    """Return pairs of rows with two answers to the same question."""
    return [((prompt, one), (prompt, other)) for one, other in pairs]


def _named(**groups: list[tuple[Texts, Texts]]) -> Pairs:
    return {
        f"{name}-{n}": pair
        for name, pairs in groups.items()
        for n, pair in enumerate(pairs)
    }


OTHERS = _named(
    order=[
        *_asked(
            ("Write a headline: dog bites man", "Write a headline: man bites dog"),
            (
                "Which train goes from Arden to Corby in the morning on weekdays?",
                "Which train goes from Corby to Arden in the morning on weekdays?",
            ),
            (
                "Translate the sentence into French: the cat sees the mouse in the barn",
                "Translate the sentence into French: the mouse sees the cat in the barn",
            ),
            (
                "Convert the given temperature from celsius to kelvin, and print it.",
                "Convert the given temperature from kelvin to celsius, and print it.",
            ),
            (
                "Is glass harder than steel, as far as you know?",
                "Is steel harder than glass, as far as you know?",
            ),
            (
                "Is this a house boat or a boat house?",
                "Is this a boat house or a house boat?",
            ),
            ("Describe milk chocolate.", "Describe chocolate milk."),
            ("Who is the guest house for?", "Who is the house guest for?"),
            ("He said that she left him.", "She said that he left him."),
            ("Only John ate the cake.", "John ate only the cake."),
            ("All of the birds are not black.", "Not all of the birds are black."),
            (
                "Divide the sum by the product of both numbers and return it.",
                "Divide the product by the sum of both numbers and return it.",
            ),
            (
                "Does the parent class inherit from the child class in this program?",
                "Does the child class inherit from the parent class in this program?",
            ),
            (
                "Copy the file from the server to the laptop with one command.",
                "Copy the file to the server from the laptop with one command.",
            ),
        ),
        *_answered(
            "Sort the attributes of this table by importance for the price of a house.",
            ("age, size", "size, age"),
            ("age size", "size age"),
            ("Age\nSize\nRooms", "Size\nAge\nRooms"),
            ("1. Age\n2. Size\n3. Rooms", "1. Size\n2. Age\n3. Rooms"),
            (
                "The age of the house, then the size of the house.",
                "The size of the house, then the age of the house.",
            ),
            (
                "First comes the age and then comes the size of the rooms.",
                "First comes the size and then comes the age of the rooms.",
            ),
            ("Age. Size. Rooms.", "Size. Age. Rooms."),
            ('["age", "size"]', '["size", "age"]'),
        ),
    ],
    terms=[
        *_asked(
            *(
                (f"What is {a} used for?", f"What is {b} used for?")
                for a, b in [
                    ("sulfate", "sulfite"),
                    ("ethane", "ethene"),
                    ("nitrate", "nitrite"),
                    ("lipase", "ligase"),
                    ("insulin", "inulin"),
                    ("propanol", "propanal"),
                    ("chloride", "chlorite"),
                    ("casein", "cassein"),
                ]
            ),
            *(
                (
                    f"What are the most common causes of {a} in older people?",
                    f"What are the most common causes of {b} in older people?",
                )
                for a, b in [
                    ("hypertension", "hypotension"),
                    ("hyperthermia", "hypothermia"),
                    ("dysphagia", "dysphasia"),
                    ("immigration", "emigration"),
                    ("hyperglycemia", "hypoglycemia"),
                    ("ureteritis", "urethritis"),
                ]
            ),
            (
                "Did the policy affect the growth of the town in the last years?",
                "Did the policy effect the growth of the town in the last years?",
            ),
            (
                "Explain the intermolecular forces of water to a child.",
                "Explain the intramolecular forces of water to a child.",
            ),
            (
                "Which is a typical reaction of the skin to the sun in spring?",
                "Which is an atypical reaction of the skin to the sun in spring?",
            ),
            (
                "Tell me about the casual relations of these two variables, please.",
                "Tell me about the causal relations of these two variables, please.",
            ),
            (
                "Describe the trail that the hikers took to the top of the hill.",
                "Describe the trial that the hikers took to the top of the hill.",
            ),
            (
                "What is the role of BRCA1 in the repair of damaged cells?",
                "What is the role of BRCA2 in the repair of damaged cells?",
            ),
            (
                "Where is the prostate of the patient in the picture to see?",
                "Where is the prostrate of the patient in the picture to see?",
            ),
            (
                "Where do most people of Iran live?",
                "Where do most people of Iraq live?",
            ),
            ("What is the area of Austria?", "What is the area of Australia?"),
            ("Is the county large?", "Is the country large?"),
            ("Do you like the dessert?", "Do you like the desert?"),
        ),
        *_answered(
            "Which compound forms when the salt reacts with the acid in the flask?",
            ("ethane", "ethene"),
            ("Sulfate.", "Sulfite."),
            ("Sodium sulfate", "Sodium sulfite"),
            ("It is phosphate", "It is phosphite"),
            ("It is glucose.", "It is glucase."),
        ),
        *_answered(
            "Spell the word that the teacher dictated to the class this morning.",
            ("valley", "vallley"),
            ("receive", "recieve"),
        ),
    ],
    code=[
        *_answered(
            "Write a line of Python that computes the result for the two given values.",
            ("result = a + b", "result = a - b"),
            ("result = a & b", "result = a | b"),
            ("result = a ** b", "result = a * b"),
            ("result = a // b", "result = a / b"),
            ("result += a", "result = a"),
            ("result = a < b", "result = a <= b"),
            ("result = values[1:]", "result = values[:1]"),
            ("result = values[i]", "result = values[]"),
            ("result = (a + b) * c", "result = a + (b * c)"),
            ("result = f(a, b)", "result = f(b, a)"),
            ("result = first - second", "result = second - first"),
            ("print(result)", 'print("result")'),
            ("result = not a", "result = a"),
            ("return a", "return"),
            ("for i in values: print(i)", "for i in values: print()"),
            ("for item in items: print(item)", "for item in items: print(items)"),
            ("a = 1\na = 2\nprint(a)", "a = 2\na = 1\nprint(a)"),
            ("x = ~a", "x = a"),
            ("result = min(values)", "result = max(values)"),
            ("cp source target", "cp target source"),
        ),
        *_answered(
            "Write a query that lists the people in the table.",
            (
                "SELECT name FROM people ORDER BY age ASC",
                "SELECT name FROM people ORDER BY age DESC",
            ),
            ("SELECT name, age FROM people", "SELECT age, name FROM people"),
            (
                "SELECT name FROM people WHERE age > 30",
                "SELECT name FROM people WHERE age < 30",
            ),
            ("SELECT name FROM people", "SELECT names FROM people"),
            ("SELECT * FROM a LEFT JOIN b", "SELECT * FROM b LEFT JOIN a"),
        ),
        *_answered(
            "Give the record of the town as JSON.",
            (
                '{"town": "Arden", "twin": "Corby"}',
                '{"town": "Corby", "twin": "Arden"}',
            ),
            ('{"open": true}', '{"open": "true"}'),
            ('{"size": null}', '{"size": 0}'),
        ),
    ],
    values=[
        *_asked(
            ("What happened on 2021-03-04?", "What happened on 2021-04-03?"),
            ("Is 5 km far to walk for a child?", "Is 5 mi far to walk for a child?"),
            ("Does it weigh 3 mg or more?", "Does it weigh 3 kg or more?"),
            ("Meet me at 5 am on Monday.", "Meet me at 5 pm on Monday."),
            ("Meet me at 5 pm on Monday.", "Meet me at 5 pm on Sunday."),
            ("It costs $5 a day.", "It costs €5 a day."),
            ("Round 1.25 to a tenth.", "Round 12.5 to a tenth."),
            ("How much is 3 - 2?", "How much is 3 + 2?"),
            ("How much is 2^3?", "How much is 2*3?"),
            ("Compute 3 * (4 + 2).", "Compute (3 * 4) + 2."),
            ("What is the square of -4?", "What is the square of 4?"),
            (
                "Which king ruled in the 5th century BC?",
                "Which king ruled in the 5th century AD?",
            ),
            ("Describe Louis XIV of France.", "Describe Louis XVI of France."),
        ),
    ],
    logic=[
        *_asked(
            (
                "Is it legal to park here at night?",
                "Is it not legal to park here at night?",
            ),
            ("Is it legal to park here?", "Is it illegal to park here?"),
            ("Did he win the race last year?", "Did she win the race last year?"),
            ("Name some birds that can fly.", "Name some birds that can't fly."),
            ("Are all swans white?", "Are some swans white?"),
            (
                "Which of the numbers is the largest?",
                "Which of the numbers is the smallest?",
            ),
            (
                "What should I do before the meeting?",
                "What should I do after the meeting?",
            ),
            (
                "Write a poem with rhymes about the sea.",
                "Write a poem without rhymes about the sea.",
            ),
            ("Is it at least as big?", "Is it at most as big?"),
            ("Is the book on the table?", "Is the book under the table?"),
            ("Is the book in the box?", "Is the book on the box?"),
            ("Look for the key.", "Look at the key."),
            ("Could he have done it?", "Would he have done it?"),
            ("Summarize this text.", "Summarize that text in French."),
            (
                "Write a function that sorts a list of words by their length.",
                "Write a function that sorts a list of words by their length. Do not use loops.",
            ),
            (
                "Write a function that sorts a list of words by their length.",
                "Write a function that sorts a list of words by their length. Use only one line.",
            ),
            (
                "Which vitamin is it? Vitamin A helps the eyes.",
                "Which vitamin is it? Vitamin helps the eyes.",
            ),
        ),
        *_answered(
            "Is the bridge over the river safe for the heavy trucks of the mill?",
            ("Yes.", "Yes. No."),
            (
                "It is safe for all of the trucks that use it at this time of the year.",
                "It is safe for all of the trucks that use it at this time of the year. Not in winter.",
            ),
            (
                "It is safe for all of the trucks that use it at this time of the year.",
                "It is safe for all of the trucks that use it at this time of the year. "
                "Ice may close it from December on.",
            ),
        ),
    ],
    choices=[
        *_asked(
            (
                "Which is a fruit?\nA) apple\nB) chair",
                "Which is a fruit?\nA) chair\nB) apple",
            ),
            (
                "Which is a fruit?\nA. apple\nB. chair\nC. stone",
                "Which is a fruit?\nA. stone\nB. chair\nC. apple",
            ),
            (
                "Which is a fruit? (1) apple (2) chair",
                "Which is a fruit? (1) chair (2) apple",
            ),
            answer="B",
        ),
    ],
    tables=[
        *_asked(
            (
                "Who is older?\nname | age\nAnn | 30\nBob | 40",
                "Who is older?\nname | age\nAnn | 40\nBob | 30",
            ),
            (
                "Who is older?\nAnn,tall\nBob,short",
                "Who is older?\nAnn,short\nBob,tall",
            ),
            answer="Bob is the older one of the two people in the table.",
        ),
    ],
    languages=[
        *_asked(
            ("Translate to French: good night", "Translate to Spanish: good night"),
            (
                "Translate from French to Spanish: nuit",
                "Translate from Spanish to French: nuit",
            ),
            ("狗咬人是什么意思?", "人咬狗是什么意思?"),
            ("東京から大阪まで何時間ですか", "大阪から東京まで何時間ですか"),
            ("这个药可以吃吗?", "这个药不可以吃吗?"),
            ("日本で一番高い山は何ですか", "日本で一番長い川は何ですか"),
            ("من أين إلى أين: من مكة إلى جدة", "من أين إلى أين: من جدة إلى مكة"),
            ("ما هي عاصمة مصر؟", "ما هي عاصمة قطر؟"),
            ("Wo liegt die Stadt Essen?", "Wo liegt die Stadt Hessen?"),
            ("Der Hund beißt den Mann.", "Den Hund beißt der Mann."),
            ("¿Dónde está el papá de la niña?", "¿Dónde está la papa de la niña?"),
            ("Что такое мука и кто её ест?", "Что такое мука и кто её не ест?"),
        ),
        *_answered(
            "Write the word in the language of the town that we visited in spring.",
            ("Schon wieder", "Schön wieder"),
            ("año", "ano"),
        ),
    ],
    poems=[
        *_answered(
            "Write a poem of two lines about the old mill and the river in the valley.",
            (
                "The mill is old and turns no more,\nthe river sings along the shore.",
                "The river sings along the shore,\nthe mill is old and turns no more.",
            ),
        ),
    ],
)

SHADE = "People like the oak of the river valley, since it gives them shade in summer."
REPEATS = _named(
    case=[
        *_asked(
            ("WHY do people like the oak?", "why do people like the Oak"), answer=SHADE
        )
    ],
    typo=[
        # A second typo is likelier than another word.
        (
            ("Write a program that shows addresses of people.", "values = sorted(a)"),
            ("Wriet a program that shows addressses of people.", "values = sorted(a)"),
        ),
        *_asked(
            (
                "Why do people like the oak in the valley?",
                "Why do people like the oak in the vallley?",
            ),
            (
                "Why do people like the oak in the valley?",
                "Why do poeple like the oak in the valley?",
            ),
            (
                "Why do people like the oak of the river town?",
                "Why do people lke the oak of the river town?",
            ),
            answer=SHADE,
        ),
        *_answered(
            "Why do people like the oak?", (SHADE, SHADE.replace("summer", "sumemr"))
        ),
    ],
    spaces=[
        *_asked(
            ("Why  do people\nlike the oak?", "Why do people like the oak ?"),
            answer=SHADE,
        )
    ],
    articles=[
        *_asked(
            ("Why do people like the oak?", "Why do people like oak?"), answer=SHADE
        )
    ],
    politeness=[
        (
            ("Who built the old mill?", "It was built by the people of the town."),
            (
                "Who built the old mill? Let me knw if you have any qusetions.",
                "It was built by the people of the town.",
            ),
        ),
        *_asked(
            (
                "Why do people like the oak?",
                "Please tell me: why do people like the oak?",
            ),
            (
                "Why do people like the oak?",
                "Why do people like the oak? Thank you so much in advance!",
            ),
            ("Why do people like the oak?", "Hi there! Why do people like the oak?"),
            (
                "Why do people like the oak?",
                "Why do people like the oak? I would be very grateful for your help.",
            ),
            answer=SHADE,
        ),
        *_answered(
            "Why do people like the oak?",
            (SHADE, f"Certainly! {SHADE}"),
            (SHADE, f"{SHADE}\n\nI hope that this was helpful to you!"),
            (SHADE, f"{SHADE} Anything else on your mind?"),
        ),
    ],
    words=[
        *_asked(
            (
                "Why do people of the river valley like the old oak so much?",
                "Why do people of the river valley the like old oak so much?",
            ),
            answer=SHADE,
        ),
        *_answered(
            "Why do people like the oak?",
            (SHADE, SHADE.replace("gives them", "them gives")),
            (
                f"{SHADE} It lives for many hundred years.",
                f"It lives for many hundred years. {SHADE}",
            ),
        ),
    ],
    signs=[
        *_answered(
            "Write a function that adds two numbers, and explain it to a child.",
            (
                "def add(a, b):\n    return a + b\n\nIt adds a and b.",
                "def add(a, b): return a + b. It adds a and b!",
            ),
        ),
    ],
    scripts=[
        *_asked(
            ("狗 咬 人是什么意思？", "狗咬人是什么意思?"), answer="這是一句話的意思"
        ),
        *_asked(
            ("Wo liegt die schöne Stadt Essen?", "Wo liegt die schöne Stadt Essen"),
            answer=SHADE,
        ),
    ],
)
