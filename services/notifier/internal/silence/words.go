package silence

import (
	"net/http"

	"golang.org/x/text/language"
)

// words are what the page and the answers to Slack say, in one language.
type words struct {
	Code string
	// of the page
	Ask, AskText, Button, About, Matching, Lasts, Until, ID, YourName, NameMissing, Open string
	Done, Already, NotDone, NotDoneText                                                  string
	Expired, ExpiredText, Forged, ForgedText, Changed, ChangedText                       string
	Elsewhere, ElsewhereText, TooOften, TooOftenText, TooLarge, Off, OffText, Broken     string
	// of the answers to Slack: how long, who, until when, id
	Silenced, Acknowledged, AlreadySilenced, Refused string
}

func english() words {
	return words{
		Code: "en", Ask: "Silence this alert?", AskText: "Nothing has been silenced yet.", Button: "Silence for %s", About: "Message",
		Matching: "Alerts with these labels", Lasts: "For", Until: "until %s", ID: "Silence", YourName: "Your name",
		NameMissing: "Please say who you are, in at most 80 characters.", Open: "Open Alertmanager",
		Done: "Silenced", Already: "Already silenced", NotDone: "Not silenced",
		NotDoneText: "%s. Try again, or create the silence in Alertmanager.",
		Expired:     "This link has expired", ExpiredText: "Nothing was silenced. Use the link of a newer message, or silence in Alertmanager.",
		Forged: "This link is not valid", ForgedText: "Nothing was silenced. Was it copied as a whole? Follow it from the message once more.",
		Changed: "This form was changed", ChangedText: "Nothing was silenced. A link silences what it says and nothing else.",
		Elsewhere: "This came from another site", ElsewhereText: "Nothing was silenced. Follow the link from the message and press the button there.",
		TooOften: "Too many requests", TooOftenText: "Nothing was silenced. Try again in a minute.",
		TooLarge: "That was too much", Off: "There is nothing here", OffText: "Links to silence are not configured (notifier.interactions).",
		Broken:          "Links cannot be checked now",
		Silenced:        "Silenced for %s by %s until %s: %s",
		Acknowledged:    "Acknowledged, and silenced for %s, by %s until %s: %s",
		AlreadySilenced: "Already silenced by %[2]s until %[3]s: %[4]s", Refused: "Not silenced: %s",
	}
}

func chinese() words {
	return words{
		Code: "zh", Ask: "静默此告警？", AskText: "目前尚未静默任何告警。", Button: "静默 %s", About: "消息",
		Matching: "带有以下标签的告警", Lasts: "时长", Until: "至 %s", ID: "静默编号", YourName: "您的姓名",
		NameMissing: "请填写您的姓名，最多 80 个字符。", Open: "打开 Alertmanager",
		Done: "已静默", Already: "此前已静默", NotDone: "未能静默",
		NotDoneText: "%s。请重试，或在 Alertmanager 中创建静默。",
		Expired:     "链接已过期", ExpiredText: "没有静默任何告警。请使用较新消息中的链接，或在 Alertmanager 中静默。",
		Forged: "链接无效", ForgedText: "没有静默任何告警。链接复制完整了吗？请从消息中重新打开。",
		Changed: "表单已被改动", ChangedText: "没有静默任何告警。链接只能静默其中写明的内容。",
		Elsewhere: "请求来自其他网站", ElsewhereText: "没有静默任何告警。请从消息中打开链接，并在该页面上点击按钮。",
		TooOften: "请求过于频繁", TooOftenText: "没有静默任何告警。请一分钟后重试。",
		TooLarge: "内容过大", Off: "此处没有内容", OffText: "未配置静默链接（notifier.interactions）。",
		Broken:          "暂时无法校验链接",
		Silenced:        "已静默 %s，操作人 %s，至 %s：%s",
		Acknowledged:    "已确认并静默 %s，操作人 %s，至 %s：%s",
		AlreadySilenced: "%[2]s 此前已静默，至 %[3]s：%[4]s", Refused: "未能静默：%s",
	}
}

// wordsIn are those of a receiver's language.
func wordsIn(code string) words {
	if code == "zh" {
		return chinese()
	}
	return english()
}

// wordsFor are those that a browser asks for by Accept-Language.
func wordsFor(r *http.Request) words {
	matcher := language.NewMatcher([]language.Tag{language.English, language.Chinese})
	if _, i := language.MatchStrings(matcher, r.Header.Get("Accept-Language")); i == 1 {
		return chinese()
	}
	return english()
}
