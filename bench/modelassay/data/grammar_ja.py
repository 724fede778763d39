"""The Japanese grammar: particles by role, verb forms, counters by kind of noun, relative clauses before nouns.

Features: ``f`` verb form; ``t`` polite tense and ``p`` plain tense; ``d`` how deep relative clauses may still nest;
``k`` kind of noun, ``o`` of thing, ``b`` of animal.
"""

from __future__ import annotations

from modelassay.data.grammar import Grammar, compile_grammar

FEATURES = {
    "f": ("polite.pres", "polite.past", "plain.pres", "plain.past", "te"),
    "t": ("pres", "past"),
    "d": ("0", "1", "2"),
    "k": ("person", "beast", "bird", "food", "tool", "text", "place", "item"),
    "o": ("food", "tool", "text", "item"),
    "b": ("beast", "bird"),
}

RULES = """
Intro.pres : Name さんは Where Adj.place Noun.place に 住んで いる Noun.person です 。
    | Name さんは Noun.place で 働いて いる Noun.person です 。
Intro.past : Name さんは Where Adj.place Noun.place に 住んで いた Noun.person でした 。
    | Name さんは Noun.place で 働いて いた Noun.person でした 。
Sentence.{t} : 8* Clause.2.polite.{t} 。 | 3* Setting 、 Clause.2.polite.{t} 。
    | 2* Clause.1.te 、 Clause.1.polite.{t} 。 | 2* Clause.1.plain.{t} Because 、 Clause.1.polite.{t} 。
    | 1* Clause.1.polite.{t} が 、 Clause.1.polite.{t} 。 | 2* Joint 、 Clause.1.polite.{t} 。
Request : Name さんについて 教えてください 。 | Name さんと Friend さんについて 書いてください 。
    | Noun.person の Name さんの 一日を 説明してください 。 | Name さんは Noun.place で 何を しましたか 。
    | Name さんと Adj.item Noun.item の 話を してください 。 | Setting 、 Name さんと Noun.beast は 何を しましたか 。

Clause.{d}.{f} : 6* Topic は Deed.{d}.{f} | 2* Whole.person.{d} が Deed.{d}.{f} | 1* Whole.{b}.{d} が Stir.{d}.{f}
    | 1* Whole.item.{d} が State.{d}.{f} | 1* Whole.item.{d} は State.{d}.{f}
    | 1* Noun.place に Whole.item.{d} が V.exist.{f} | 1* Noun.place に Whole.{b}.{d} が V.be.{f}
Topic : 3* Pronoun | 2* Name さん

Whole.{k}.0 : 3* NP.{k} | 1* Count.{k} の NP.{k} | 1* This NP.{k}
Whole.{k}.1 : 5* Whole.{k}.0 | 1* Rel.{k}.0 NP.{k}
Whole.{k}.2 : 4* Whole.{k}.0 | 1* Rel.{k}.1 NP.{k}
NP.{k} : 4* Noun.{k} | 1* Adj.{k} Noun.{k} | 1* Owner の Noun.{k}
Owner : 2* Pronoun | 1* Name さん | 1* Friend さん | 1* Noun.person
Rel.person.{d} : Deed.{d}.plain.{t}
Rel.beast.{d} : Stir.{d}.plain.{t}
Rel.bird.{d} : Stir.{d}.plain.{t}
Rel.food.{d} : Topic が V.eat.plain.past | Whole.person.{d} が V.eat.plain.past
Rel.tool.{d} : Topic が V.use.plain.past | Whole.person.{d} が V.use.plain.past
Rel.text.{d} : Topic が V.read.plain.past | Whole.person.{d} が V.read.plain.past
Rel.item.{d} : Topic が V.take.plain.past | Whole.person.{d} が V.take.plain.past
Rel.place.{d} : Topic が V.move.plain.past | Whole.person.{d} が V.visit.plain.past

Deed.{d}.{f} : 5* Act.{d}.{f} | 2* Noun.place で Act.{d}.{f} | 1* Friend さんと Act.{d}.{f}
    | 1* 「 Clause.0.plain.{t} 」と V.say.{f} | 1* Stem.person Be.{f}
Act.{d}.{f} : V.rest.{f} | Manner V.rest.{f} | 2* Whole.food.{d} を V.eat.{f} | 2* Whole.tool.{d} を V.use.{f}
    | 2* Whole.text.{d} を V.read.{f} | Manner Whole.text.{d} を V.read.{f} | 2* Whole.item.{d} を V.take.{f}
    | 2* Whole.place.{d} へ V.move.{f} | Noun.place から Noun.place まで V.move.{f} | Whole.place.{d} を V.visit.{f}
    | 2* Companion に V.meet.{f} | Whole.person.{d} に V.meet.{f} | Whole.{b}.{d} を V.tend.{f}
    | 2* Companion に NP.{o} を V.give.{f} | NP.tool で NP.food を V.cut.{f}
Companion : 2* Friend さん | 1* NP.person
Stir.{d}.{f} : 2* V.roam.{f} | Manner V.roam.{f} | Noun.place で V.roam.{f} | Whole.{b}.{d} を V.chase.{f}
    | NP.person を V.chase.{f} | NP.food を V.peck.{f}
State.{d}.{f} : 2* Stem.item Be.{f} | 2* Where Noun.place に V.exist.{f} | Noun.place で V.break.{f}
    | NP.person に V.fit.{f}
Where : 川の近くの | 山の向こうの | 駅の前の | 町の外の | 橋のそばの
Adj.{k} : 3* Adj.{k}.i | 1* Adj.{k}.na

Be.polite.pres : いです
Be.polite.past : かったです
Be.plain.pres : い
Be.plain.past : かった
Be.te : くて
"""

NOUNS = {
    "person": "先生 学生 医者 農夫 漁師 大工 画家 作家 歌手 店員 看護師 子供 王様 料理人 商人 隣人 兵士 職人 運転手 祖父 祖母 弟 妹 "
    "詩人 庭師 船長 記者 友人 旅人 僧侶",
    "beast": "犬 猫 馬 牛 羊 狐 狼 兎 熊 鼠 猿 鹿 豚 狸 山羊 亀",
    "bird": "鳥 鶏 雀 烏 鴨 鷹 鳩 白鳥 梟 燕",
    "food": "林檎 パン 卵 蜜柑 梨 饅頭 団子 芋 桃 西瓜 栗 柿 玉葱 菓子 餅 おにぎり 豆腐",
    "tool": "傘 ほうき 鉛筆 筆 縄 斧 釣竿 包丁 針 鋏 竹竿 槍 杖 蝋燭 鋸",
    "text": "本 雑誌 辞書 日記 絵本 小説 地図帳 ノート 教科書 詩集 図鑑 手帳 楽譜",
    "place": "村 港 市場 学校 森 庭 川 丘 橋 図書館 水車小屋 塔 畑 城 谷 広場 駅 台所 農場 寺 湖 工場 海岸 宿屋 島 神社 病院 公園",
    "item": "箱 机 椅子 時計 鏡 帽子 鞄 太鼓 石 鍋 花瓶 皿 人形 鍵 荷物 布団 提灯 窓 車輪 看板",
}
COUNTERS = {
    "person": "人",
    "beast": "匹",
    "bird": "羽",
    "food": "個",
    "tool": "本",
    "text": "冊",
    "place": "箇所",
    "item": "つ",
}
NUMERALS = ("一", "二", "三", "四", "五", "六", "七", "八", "九")

I_ADJECTIVES = {
    "person": "若 優し 賢 忙し 強 貧し 背の高 悲し おとなし 楽し 偉 正し",
    "beast": "小さ 黒 白 怖 大き 速 可愛 おとなし 賢 弱",
    "bird": "小さ 黒 白 美し 大き 速 可愛 青 赤",
    "food": "甘 丸 温か 冷た 柔らか 美味し 苦 古 大き 安",
    "tool": "長 重 鋭 短 古 新し 高 細 軽",
    "text": "面白 長 古 難し 厚 新し 悲し 薄 易し 珍し",
    "place": "暗 狭 広 遠 明る 古 寂し 美し 深 小さ",
    "item": "赤 青 重 軽 新し 古 大き 小さ 白 黒 丸 黄色",
}
NA_ADJECTIVES = {
    "person": "元気 親切 静か 有名 正直 真面目",
    "beast": "元気 静か 丈夫",
    "bird": "元気 静か 綺麗",
    "food": "新鮮 特別 上等",
    "tool": "便利 丈夫 必要",
    "text": "有名 大切 奇妙 大事",
    "place": "静か 有名 賑やか 平和",
    "item": "大切 綺麗 奇妙 立派",
}

VERBS = {
    "rest": "笑う:5 眠る:5 働く:5 待つ:5 休む:5 歌う:5 踊る:5 泣く:5 起きる:1 考える:1 黙る:5 祈る:5",
    "eat": "食べる:1 買う:5 売る:5 洗う:5 焼く:5 選ぶ:5 分ける:1 味わう:5",
    "use": "使う:5 直す:5 持つ:5 借りる:1 見つける:1 磨く:5 失くす:5 隠す:5",
    "read": "読む:5 書く:5 写す:5 開く:5 閉じる:1 調べる:1 破る:5 終える:1",
    "take": "運ぶ:5 押す:5 塗る:5 壊す:5 動かす:5 置く:5 拾う:5 捨てる:1 飾る:5",
    "move": "行く:5 走る:5 帰る:5 急ぐ:5 歩く:5 戻る:5 出かける:1 向かう:5",
    "visit": "訪れる:1 離れる:1 覚える:1 見下ろす:5 渡る:5 探す:5",
    "meet": "会う:5 話す:5 頼む:5 答える:1 教える:1 謝る:5 従う:5 近づく:5",
    "tend": "呼ぶ:5 育てる:1 飼う:5 見守る:5 撫でる:1 連れる:1 助ける:1",
    "give": "渡す:5 見せる:1 送る:5 貸す:5 売る:5 届ける:1 配る:5",
    "cut": "切る:5 割る:5 刻む:5 削る:5",
    "say": "言う:5 思う:5 信じる:1 聞く:5 感じる:1 叫ぶ:5 伝える:1",
    "roam": "走る:5 眠る:5 跳ねる:1 隠れる:1 泳ぐ:5 鳴く:5 逃げる:1 遊ぶ:5 吠える:1",
    "chase": "追う:5 噛む:5 見る:1 恐れる:1 追い越す:5",
    "peck": "食べる:1 盗む:5 見つける:1 運ぶ:5",
    "exist": "ある:5 並ぶ:5 落ちる:1 残る:5",
    "be": "いる:1 集まる:5 現れる:1",
    "break": "壊れる:1 光る:5 倒れる:1 腐る:5",
    "fit": "合う:5 似合う:5 役立つ:5",
}

NAMES = {
    "彼": ("太郎", "健二", "一郎", "大輔", "誠", "拓也", "浩", "直樹", "翔太", "隆"),
    "彼女": ("花子", "美咲", "由美", "恵子", "桜", "陽子", "千尋", "麻衣", "明美", "舞"),
}

PHRASES = {
    "Because": ("ので", "から", "けれど", "のに"),
    "Joint": ("そして", "しかし", "それから", "また", "ところが", "だから"),
    "Manner": ("ゆっくり", "静かに", "急に", "一人で", "楽しそうに", "もう一度", "毎日", "少し", "よく", "喜んで"),
    "Setting": ("朝", "夜", "夕方", "冬の日に", "嵐の間", "昼休みに", "春になると", "雨の後で", "時々", "休みの日に", "日が昇る前に", "最後に"),
    "This": ("この", "その", "あの", "ある", "別の"),
}  # fmt: skip

# Row of a godan verb's final kana -> its i-form, plain past and te-form endings.
_GODAN = {
    "う": ("い", "った", "って"), "つ": ("ち", "った", "って"), "る": ("り", "った", "って"), "む": ("み", "んだ", "んで"),
    "ぶ": ("び", "んだ", "んで"), "く": ("き", "いた", "いて"), "ぐ": ("ぎ", "いだ", "いで"), "す": ("し", "した", "して"),
}  # fmt: skip


def grammar() -> Grammar:
    """Compile the Japanese grammar; units are characters."""
    return compile_grammar(RULES, features=FEATURES, words=_words(), split=tuple)


def conjugate(verb: str) -> dict[str, str]:
    """Return the five forms of a verb written with its group: ``:5`` godan, ``:1`` ichidan.

    >>> list(conjugate("書く:5").values())
    ['書きます', '書きました', '書く', '書いた', '書いて']
    >>> list(conjugate("食べる:1").values())
    ['食べます', '食べました', '食べる', '食べた', '食べて']
    """
    plain, group = verb.split(":")
    stem, last = plain[:-1], plain[-1]
    masu, past, te = ("", "た", "て") if group == "1" else _GODAN[last]
    if plain == "行く":
        past, te = "った", "って"
    forms = (stem + masu + "ます", stem + masu + "ました", plain, stem + past, stem + te)
    return dict(zip(FEATURES["f"], forms, strict=True))


def _words() -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = dict(PHRASES)
    words["Name"] = words["Friend"] = tuple(name for pair in zip(*NAMES.values(), strict=True) for name in pair)
    words["Pronoun"] = tuple(NAMES)
    words |= {f"Noun.{kind}": tuple(nouns.split()) for kind, nouns in NOUNS.items()}
    words |= {f"Count.{kind}": tuple(numeral + counter for numeral in NUMERALS) for kind, counter in COUNTERS.items()}
    words |= {f"Stem.{kind}": tuple(stems.split()) for kind, stems in I_ADJECTIVES.items()}
    words |= {f"Adj.{kind}.i": tuple(stem + "い" for stem in stems.split()) for kind, stems in I_ADJECTIVES.items()}
    words |= {f"Adj.{kind}.na": tuple(stem + "な" for stem in stems.split()) for kind, stems in NA_ADJECTIVES.items()}
    for kind, verbs in VERBS.items():
        forms = [conjugate(verb) for verb in verbs.split()]
        words |= {f"V.{kind}.{form}": tuple(each[form] for each in forms) for form in FEATURES["f"]}
    return words
