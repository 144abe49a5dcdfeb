"""Texts of our own for benchmarks without ``--data``: plain prose, longer than 128 tokens of any vocabulary we use."""

from __future__ import annotations

PASSAGES = (
    "The old mill stood at the end of the village, where the road turns away from the river and goes up into the "
    "hills. Nobody had lived there for many years. The children said that a light could be seen in the upper window "
    "on winter evenings, but their parents only laughed and told them to be home before dark. One morning in October "
    "a man came down the road with a small cart and a grey donkey. He stopped in front of the mill, looked at the "
    "broken door for a long time, and then began to unload his things. There was a table with three legs, a box full "
    "of books, a large clock that did not go, and a cage with a black bird in it. By noon the whole village knew that "
    "somebody had come to live in the mill, and by evening everybody had a story about him. The baker, who had sold "
    "him two loaves of bread, said that he was very polite and paid with silver. The smith had seen his hands and was "
    "sure that he had never done a day's work. Only the old teacher said nothing. She put on her coat, took her stick "
    "and went down to the river to see for herself.",
    "The town council decided on Tuesday to build a new bridge over the canal, after the old one had been closed to "
    "traffic for almost a year. Repairs would have cost nearly as much as a new bridge, the mayor said after the "
    "meeting, and the old one had become too narrow for buses long ago. Work is to begin in the spring and will take "
    "about eighteen months. Until then, drivers will have to use the road past the station, where the waiting times "
    "in the morning have doubled since last summer. Shop owners on the east side of the canal had asked for help, "
    "because many customers now go elsewhere. The council agreed to lower their rents while the work goes on, and a "
    "ferry for people on foot and on bicycles will run every ten minutes from April. Not everybody was content with "
    "the decision. Two members voted against it, since they had wanted a bridge that trams can use as well. The money "
    "for the first year is already in the budget, while the rest depends on a grant that the state will decide about "
    "in June.",
    "If you want to grow tomatoes on a balcony, the most important things are light, water and a pot that is large "
    "enough. Choose a place that has sun for at least six hours a day and is sheltered from the wind. Small kinds do "
    "better in pots than large ones, and they are ripe earlier. Put the seeds into small cups in March and keep them "
    "warm. When the plants are about as long as your finger, move each of them into a cup of its own, and take them "
    "outside only after the last cold nights. Water them every morning, at the foot of the plant, so that the leaves "
    "stay dry. A plant that is dry one day and wet the next will get fruits that break open. From June on, give them "
    "some food every two weeks. Take away the small shoots that grow between the stem and the leaves, because they "
    "cost the plant strength and give you nothing. In a good summer you can pick the first tomatoes in July, and the "
    "last ones in October, when you should bring the green ones inside and leave them next to an apple.",
)

CONVERSATIONS = (
    (
        "Ann has three boxes with twelve eggs each. She uses five eggs for a cake. How many eggs has she left?",
        "She sells the rest in bags of six. How many bags can she fill, and how many eggs are left over?",
    ),
    (
        "Write a short story about a fox that wants to learn to swim.",
        "Now tell the same story again, but the fox is afraid of the dark.",
    ),
    (
        "A train leaves at nine and goes 80 kilometres an hour. How far is it at half past eleven?",
        "A second train leaves at ten and goes 120 kilometres an hour. When does it reach the first one?",
    ),
    (
        "Describe a garden in winter in a few sentences.",
        "Describe the same garden in summer, and say what has changed.",
    ),
)
