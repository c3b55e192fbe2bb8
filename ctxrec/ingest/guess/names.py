"""What the names of columns and files say: words that people use for users, items, times, actions and values."""

from __future__ import annotations

import re


def known(spelled: str) -> frozenset[str]:
    """Words as they are listed below, with spaces between."""
    return frozenset(spelled.split())


# Words of a name, in lower case; Chinese words count wherever they stand in it.
USER = known(
    "user customer client member visitor buyer viewer reviewer account person uid reader listener household shopper "
    "subscriber consumer player profile patient student learner guest author_id kunde kunden benutzer nutzer besucher käufer teilnehmer client cliente "
    "utilisateur acheteur usuario comprador 用户 会员 客户 顾客 买家 访客"
)
SESSION = known("session device cookie visit anonymous browser ip 会话 设备")
ITEM = known(
    "item product sku movie film article song track video asin isbn stock content news book hotel listing goods offer "
    "game course recipe business iid show restaurant poi venue job property title_id artikel produkt ware buch produit producto "
    "articulo artículo livre libro 商品 物品 产品 视频 文章 电影 歌曲 新闻 书籍"
)
MAYBE_ITEM = known("reference ref object target entity page post doc document artist place app ad 对象")
IDENTIFIER = known("id ids code no nr num number nummer key uuid guid uid sku asin isbn hash idx index 编号 号")
TIME = known(
    "time timestamp date datetime ts at when created occurred datum zeit zeitpunkt zeitstempel heure fecha hora 时间 日期"
)
ACTION = known(
    "action event behavior behaviour interaction kind verb activity aktion aktionsart ereignis ereignistyp vorgang vorgangsart "
    "accion acción 行为 动作"
)
RATING = known("rating score stars grade review_score bewertung note sterne 评分 打分")
QUANTITY = known("quantity qty count units menge anzahl stück quantité cantidad 数量")
DWELL = known("dwell duration seconds watch watched listened playtime length_watched 时长 停留")
MONEY = known(
    "price amount revenue spend spent total cost value preis betrag umsatz kosten wert prix montant precio importe 金额 价格"
)
CONTEXT = known(
    "device platform os browser app channel country city region state store language locale weather season placement "
    "position_type page_type network carrier surface location query search keyword referrer campaign hour_of_day gerät "
    "gerätetyp endgerät betriebssystem kanal vertriebskanal land ort stadt filiale sprache wetter 设备 平台 "
    "城市 地区 渠道 门店"
)
QUERY = known("query search keyword keywords comment 搜索 关键词")
TITLE = known("title name headline subject titel bezeichnung titre nom titulo título nombre 标题 名称")
DESCRIPTION = known(
    "description text body summary content abstract overview plot about bio beschreibung descripcion descripción 描述 简介 内容"
)
WORDY = known(
    "brand category categories genre genres author authors artist director maker publisher tags tag keywords subject "
    "department section type marke kategorie gattung hersteller autor verlag marque catégorie marca categoría 品牌 类别 分类 类型 作者 标签"
)
GRAPH = (("head", "relation", "tail"), ("subject", "predicate", "object"), ("head_id", "relation_id", "tail_id"))
EVENTS_FILE = known(
    "event events rating ratings interaction interactions click clicks log logs transaction transactions order orders "
    "purchase purchases view views session sessions behavior behaviour inter history review reviews train 行为 日志"
)
ITEMS_FILE = known(
    "item items product products movie movies catalog catalogue article articles song songs track tracks book books hotel "
    "hotels meta metadata content goods video videos news 商品 物品"
)
USERS_FILE = known("user users customer customers member members people profile profiles demographics 用户 客户")

# Usual weights of actions as training targets, by a word of the action's name.
ACTION_WEIGHTS: dict[str, float] = {
    **dict.fromkeys(
        known(
            "purchase purchased buy bought transaction checkout clickout convert conversion kauf gekauft bestellung bestellt 购买"
        ),
        1.0,
    ),
    **dict.fromkeys(known("like liked upvote share shared follow subscribe install complete 点赞 分享"), 1.0),
    **dict.fromkeys(
        known(
            "cart addtocart basket wishlist wish favorite favourite fav save bookmark warenkorb merkzettel 加购 收藏"
        ),
        0.5,
    ),
    **dict.fromkeys(known("click clicked play played open read listen watch klick 点击 播放"), 0.3),
    **dict.fromkeys(known("view viewed pv impression show detail ansicht aufruf 浏览 曝光"), 0.2),
    **dict.fromkeys(
        known("dislike disliked hide report unlike downvote return returned skip skipped retoure storno 不喜欢"), -1.0
    ),
}


def words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, and the name whole.

    >>> words("CustomerID"), words("movieId"), words("stock-code")
    (('customer', 'id', 'customerid'), ('movie', 'id', 'movieid'), ('stock', 'code', 'stock_code'))
    """
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_a-zA-Z]+", name)
    whole = re.sub(r"[^\w]+", "_", name).lower()
    return (*dict.fromkeys([*(part.lower() for part in parts), whole]),)


_ENDS = ("id", "code", "_id", "nr", "_nr", "nummer", "_nummer")  # of a word that is written as one with what it names


def says(name: str, terms: frozenset[str]) -> bool:
    """Whether a name has one of the known words.

    A word may have a plural s, and several words may be written as one ("userid", "itemid").
    """
    found = words(name)
    for word in found:
        if word in terms or word.removesuffix("s") in terms:
            return True
        if any(word.endswith(end) and word.removesuffix(end) in terms for end in _ENDS):
            return True
    return any(not term.isascii() and term in name for term in terms)


def action_weight(action: str) -> float | None:
    """The usual weight of an action by its name; None where no word of it is known.

    >>> [action_weight(a) for a in ("add_to_cart", "Purchase", "page view", "change of sort order")]
    [0.5, 1.0, 0.2, None]
    """
    for word in words(action):
        if word in ACTION_WEIGHTS:
            return ACTION_WEIGHTS[word]
    return next((weight for word, weight in ACTION_WEIGHTS.items() if not word.isascii() and word in action), None)
