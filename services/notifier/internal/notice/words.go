package notice

import "fmt"

// Words are what Lifeboat itself says in a message, in one language.
type Words struct {
	// Code is "en" or "zh".
	Code                                            string
	Firing, Resolved, Partial, Event                string
	Since, Ended, Runbook, NoRunbook, DeadLink      string
	FirstSteps, Late, Digest, More, Truncated, Part string
	Silence, Acknowledge, Flapped                   string
	// LateEnded and LateEvent are as Late, for alerts that ended, and for events.
	LateEnded, LateEvent string
	// Instead of the receiver that it was handed on from, and with why that one did not deliver it.
	Instead, InsteadWhy string
	// Fired and Came begin the note of a digest's item: when it fired, or for what does not fire, when it came.
	Fired, Came string
	// OneGroup and Groups, OneAlert and Alerts count.
	OneGroup, Groups, OneAlert, Alerts string
	// StillFire counts what of a group fires and is not in its message; GoesOn is said of the group's message that a newer one follows.
	StillFire, GoesOn string
	// Kinds counts different alerts; Nameless is an alert without a name.
	Kinds, Nameless string
	// From, FromItself, Received, Route and Delivery are the footer's parts; Times is a digest's, with its zone.
	From, FromItself, Received, Route, Delivery, Times string
	// TemplateFailed and TemplateCut say in the footer what became of the receiver's own template.
	TemplateFailed, TemplateCut string
	// Colon parts a text from its reason, And two reasons, and Dot the footer's parts.
	Colon, And, Dot string
}

// English words. A verb in a format is filled in by package render or a chat's package.
func English() Words {
	return Words{
		Code: "en", Firing: "FIRING", Resolved: "RESOLVED", Partial: "PARTIAL", Event: "EVENT",
		Since: "since %s", Ended: "ended %s", Runbook: "Runbook", NoRunbook: "No runbook.", DeadLink: "the link is dead (%s)",
		FirstSteps: "First steps", Late: "fired %s, delivered %s", LateEnded: "ended %s, delivered %s",
		LateEvent: "happened %s, delivered %s", Digest: "%s, %s, late", More: "… and %d more.",
		Truncated: "Alertmanager left out %d more (max_alerts); their state is unknown.", Part: "part %d of %d",
		Silence: "Silence %s", Acknowledge: "Acknowledge", Flapped: "flapped %d times in %s",
		Instead: "instead of %s", InsteadWhy: "instead of %s (%s)", Fired: "fired %s", Came: "came %s",
		OneGroup: "1 group", Groups: "%d groups", OneAlert: "1 alert", Alerts: "%d alerts",
		StillFire: "… and %d more of this group firing.", GoesOn: "Goes on in a newer message",
		Kinds: "%d kinds of alert", Nameless: "alert without a name",
		From: "from %s", FromItself: "from lifeboat itself: no Alertmanager took it", Received: "received %s",
		Route: "route %s", Delivery: "delivery %s", Times: "times in %s",
		TemplateFailed: "this is the default message, because the template failed: %s",
		TemplateCut:    "cut: the template's text is longer than %d KiB",
		Colon:          ": ", And: "; ", Dot: " · ",
	}
}

// Chinese words.
func Chinese() Words {
	return Words{
		Code: "zh", Firing: "告警", Resolved: "已恢复", Partial: "部分恢复", Event: "事件",
		Since: "开始于 %s", Ended: "结束于 %s", Runbook: "处置手册", NoRunbook: "没有处置手册。", DeadLink: "链接失效（%s）",
		FirstSteps: "首要步骤", Late: "触发于 %s，送达于 %s", LateEnded: "恢复于 %s，送达于 %s",
		LateEvent: "发生于 %s，送达于 %s", Digest: "%s、%s，延迟送达", More: "……另有 %d 条。",
		Truncated: "Alertmanager 省略了另外 %d 条（max_alerts），状态未知。", Part: "第 %d 部分，共 %d 部分",
		Silence: "静默 %s", Acknowledge: "确认", Flapped: "%[2]s 内抖动 %[1]d 次",
		Instead: "代替 %s", InsteadWhy: "代替 %s（%s）", Fired: "触发于 %s", Came: "收到于 %s",
		OneGroup: "1 组", Groups: "%d 组", OneAlert: "1 条告警", Alerts: "%d 条告警",
		StillFire: "……本组另有 %d 条仍在告警。", GoesOn: "后续见新消息",
		Kinds: "%d 种告警", Nameless: "未命名告警",
		From: "来自 %s", FromItself: "来自 lifeboat 自身：没有 Alertmanager 接收", Received: "收到于 %s",
		Route: "路由 %s", Delivery: "投递 %s", Times: "时间按 %s",
		TemplateFailed: "模板出错，改用默认消息：%s",
		TemplateCut:    "已截断：模板输出超过 %d KiB",
		Colon:          "：", And: "；", Dot: " · ",
	}
}

// In returns the words of a receiver's language.
func In(language string) Words {
	if language == "zh" {
		return Chinese()
	}
	return English()
}

// Status in this language, in capitals where the language has them.
func (w Words) Status(s Status) string {
	switch s {
	case Firing:
		return w.Firing
	case Resolved:
		return w.Resolved
	case Partial:
		return w.Partial
	}
	return w.Event
}

// GroupCount is "1 group" or "3 groups".
func (w Words) GroupCount(n int) string { return count(n, w.OneGroup, w.Groups) }

// AlertCount is "1 alert" or "3 alerts".
func (w Words) AlertCount(n int) string { return count(n, w.OneAlert, w.Alerts) }

func count(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return fmt.Sprintf(many, n)
}
