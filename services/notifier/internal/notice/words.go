package notice

// Words are what Lifeboat itself says in a message, in one language.
type Words struct {
	// Code is "en" or "zh".
	Code                                            string
	Firing, Resolved, Partial, Event                string
	Since, Ended, Runbook, NoRunbook, DeadLink      string
	FirstSteps, Late, Digest, More, Truncated, Part string
	Silence, Acknowledge, Flapped                   string
}

// English words. A verb in a format is filled in by package render or a chat's package.
func English() Words {
	return Words{
		Code: "en", Firing: "FIRING", Resolved: "RESOLVED", Partial: "PARTIAL", Event: "EVENT",
		Since: "since %s", Ended: "ended %s", Runbook: "Runbook", NoRunbook: "No runbook.", DeadLink: "the link is dead (%s)",
		FirstSteps: "First steps", Late: "fired %s, delivered %s: %s", Digest: "%d groups while %s", More: "… and %d more.",
		Truncated: "Alertmanager left out %d more (max_alerts); their state is unknown.", Part: "part %d of %d",
		Silence: "Silence %s", Acknowledge: "Acknowledge", Flapped: "flapped %d times in %s",
	}
}

// Chinese words.
func Chinese() Words {
	return Words{
		Code: "zh", Firing: "告警", Resolved: "已恢复", Partial: "部分恢复", Event: "事件",
		Since: "开始于 %s", Ended: "结束于 %s", Runbook: "处置手册", NoRunbook: "没有处置手册。", DeadLink: "链接失效（%s）",
		FirstSteps: "首要步骤", Late: "触发于 %s，送达于 %s：%s", Digest: "%d 组告警，期间 %s", More: "……另有 %d 条。",
		Truncated: "Alertmanager 省略了另外 %d 条（max_alerts），状态未知。", Part: "第 %d 部分，共 %d 部分",
		Silence: "静默 %s", Acknowledge: "确认", Flapped: "%[2]s 内抖动 %[1]d 次",
	}
}

// In returns the words of a receiver's language.
func In(language string) Words {
	if language == "zh" {
		return Chinese()
	}
	return English()
}
