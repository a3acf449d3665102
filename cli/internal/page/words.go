package page

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/text/language"
)

// The languages of the page. The first is for whoever reads none of them.
const (
	english = "en"
	chinese = "zh"
)

func languages() []string { return []string{english, chinese} }

// speak picks a language: the one that was asked for by ?lang=, or else what Accept-Language prefers.
func speak(asked, accepted string) string {
	for _, l := range languages() {
		if asked == l {
			return l
		}
	}
	tags, _, err := language.ParseAcceptLanguage(accepted)
	if err != nil || len(tags) == 0 {
		return english
	}
	_, i, _ := language.NewMatcher([]language.Tag{language.English, language.Chinese}).Match(tags...)
	return languages()[i]
}

// words are everything that the page says by itself, in one language. What services and people wrote stays as they wrote it. %s in a
// note of a target is its name.
type words struct {
	Lang, HTMLLang, Other, OtherLang, SwitchTo string

	AllWell, RedOne, RedMany, AmberOnly, SomeUnknown string
	Starting, NoneWatched, Summary                   string
	Red, Amber, Good, Unknown                        string
	WhatIsRed, NothingRed, More, Since, Runbook      string
	Away, AwayWhy, AsOf, PageAway, Updated, Blind    string

	Targets, Target, RPO, LastSnapshot, LastProof, NextTick        string
	UsedOf, AgeOnly, NoData, FirstSeen, ExceededBy                 string
	Never, Unseen, None, Ago, In, Now, RTO, Took, DataOf, PausedIt string
	Schedules, Details, Worst, Previous, Next, Find, FindHint      string
	NoTargets, NoMatch, SkipTo, Nav                                string

	Jobs, Job, State, For, NoJobs, Usually, WaitJobs, StuckJobs, MoreJobs string
	Running, Committing, Waiting, Retrying, Cancelled, NoTaker, Attempt   string
	NoAnswer                                                              string
	Deliveries, When, Receiver, What, Outcome, Lag, NoDeliveries, Waits   string
	Delivered, Digest, Folded, HandedOn, Dead, UnroutedNow                string
	DeadLetters, From, Reason, NoLetters, MoreLetters                     string
	ReadOnly, TimesAre                                                    string

	RPOExceeded, RPONearly, SnapshotFailed, VerifyFailed, DrillFailed, EscrowFailed string
	CopyFailed, PruneFailed, PruneHeld, SourceWorrying, JobRejected, CanaryLate     string
	AlertMissed, NeverProven, NoSnapshot, Paused, Missed, Unreadable, NoScheduler   string
	NoWorker, NoWorkerFor, NoWorkerIn, Unrouted, NewLetters, Stuck                  string
	ProofOld, SnapshotOld                                                           string

	DayUnit, HourUnit, MinuteUnit, SecondUnit string
	// Works are the kinds of work.
	Works map[string]string
}

func wordsOf(lang string) *words {
	if lang == chinese {
		return inChinese()
	}
	return inEnglish()
}

func inEnglish() *words {
	return &words{
		Lang: english, HTMLLang: "en", Other: chinese, OtherLang: "zh-Hans", SwitchTo: "中文",

		AllWell: "All is well", RedOne: "1 thing is red", RedMany: "%d things are red", AmberOnly: "Nothing is red; %d to watch",
		SomeUnknown: "Nothing is known to be red; %d not known",
		Starting:    "Reading what there is…", NoneWatched: "No target is watched", Summary: "Targets: %d red, %d to watch, %d not known, %d well",
		Red: "red", Amber: "watch", Good: "well", Unknown: "not known",
		WhatIsRed: "What is red", NothingRed: "Nothing is red.", More: "and %d more, below", Since: "since %s", Runbook: "Runbook",
		Away: "NATS does not answer since %s. What stands below is of then, and may be wrong by now.", AwayWhy: "Why", AsOf: "as of %s",
		PageAway: "Out of date: this page does not hear from its server. It tries again by itself.", Updated: "Updated",
		Blind: "NATS has not answered yet. Nothing is known.",

		Targets: "Targets", Target: "Target", RPO: "RPO clock", LastSnapshot: "Last snapshot", LastProof: "Last proven restore", NextTick: "Next tick",
		UsedOf: "%d%% used: %s of %s", AgeOnly: "%s old; no RPO", NoData: "not known", FirstSeen: "no snapshot since the target was first seen",
		ExceededBy: "exceeded by %s: %s of %s",
		Never:      "none in the audit log", Unseen: "none in the audit log", None: "none", Ago: "%s ago", In: "in %s", Now: "just now", RTO: "restored in %s", Took: "took %s",
		DataOf: "data of %s", PausedIt: "paused",
		Schedules: "Schedules", Details: "Details", Worst: "%d to %d of %d, the worst first", Previous: "Previous", Next: "Next", Find: "Find",
		FindHint: "Part of a target's name", NoTargets: "The configuration has no targets.", NoMatch: "No target's name has “%s” in it.",
		SkipTo: "Skip to the targets", Nav: "Pages of targets",

		Jobs: "Running jobs", Job: "Job", State: "State", For: "For", NoJobs: "No job waits or runs.", Usually: "last time %s", WaitJobs: "%d wait for a free worker",
		StuckJobs: "%d wait, and no worker takes them", MoreJobs: "and %d more: lifeboat jobs list",
		Running: "running", Committing: "committing", Waiting: "waiting", Retrying: "to be tried again", Cancelled: "cancelled", NoTaker: "no worker takes it",
		NoAnswer:   "its worker does not answer",
		Attempt:    "attempt %d",
		Deliveries: "Recent deliveries", When: "When", Receiver: "Receiver", What: "Alert", Outcome: "Outcome", Lag: "Lag",
		NoDeliveries: "No alert was delivered in the last day.", Waits: "%d wait for %s",
		Delivered: "delivered", Digest: "in a digest", Folded: "nothing new", HandedOn: "handed on to %s", Dead: "dead", UnroutedNow: "%d wait for a route",
		DeadLetters: "Dead letters", From: "From", Reason: "Reason", NoLetters: "There are none.", MoreLetters: "and %d more: lifeboat dead list",
		ReadOnly: "This page only reads.", TimesAre: "Times are %s.",

		RPOExceeded: "%s has no good snapshot within its RPO", RPONearly: "%s has used most of its RPO", SnapshotFailed: "The last snapshot of %s failed",
		VerifyFailed: "A stored snapshot of %s is damaged or cannot be read", DrillFailed: "The last restore drill of %s failed",
		EscrowFailed: "The escrow key did not restore %s", CopyFailed: "A snapshot of %s is not in the second bucket",
		PruneFailed: "Retention of %s could not be applied", PruneHeld: "%s suddenly shrank: nothing is deleted until somebody confirms",
		SourceWorrying: "The source of %s is not well", JobRejected: "A job for %s was rejected", CanaryLate: "The canary of receiver %s did not arrive",
		AlertMissed: "An alert about %s never reached Lifeboat", NeverProven: "The audit log has no drill that proves that %s restores", NoSnapshot: "%s has no snapshot yet", Paused: "%s: schedule %s is paused",
		Missed: "%s: the last tick of %s was not run", Unreadable: "Could not be read: %s",
		NoScheduler: "Nobody decides: %d schedules are overdue. No scheduler runs, or it cannot write to NATS.",
		NoWorker:    "No worker answers: nothing is backed up", NoWorkerFor: "No worker takes %s jobs (targets: %d)",
		NoWorkerIn: "Zone %s has no worker for %s jobs (targets: %d)", Unrouted: "%d webhooks wait: no notifier takes them",
		NewLetters: "New dead letters in the last day: %d", Stuck: "%d deliveries wait for %s, and none gets through",
		ProofOld: "The last proven restore of %s is of old data: no drill has proven newer", SnapshotOld: "The last snapshot of %s is older than two ticks",

		DayUnit: "%d d", HourUnit: "%d h", MinuteUnit: "%d min", SecondUnit: "%d s",
		Works: map[string]string{"snapshot": "snapshot", "verify": "verify", "drill": "drill", "prune": "prune"},
	}
}

func inChinese() *words {
	return &words{
		Lang: chinese, HTMLLang: "zh-Hans", Other: english, OtherLang: "en", SwitchTo: "English",

		AllWell: "一切正常", RedOne: "1 项告急", RedMany: "%d 项告急", AmberOnly: "没有告急；%d 项需留意",
		SomeUnknown: "没有已知的告急；%d 项未知",
		Starting:    "正在读取现状…", NoneWatched: "没有任何目标受到监视", Summary: "目标：%d 个告急，%d 个需留意，%d 个未知，%d 个正常",
		Red: "告急", Amber: "留意", Good: "正常", Unknown: "未知",
		WhatIsRed: "告急事项", NothingRed: "没有告急事项。", More: "另有 %d 项，见下", Since: "自 %s", Runbook: "处置手册",
		Away: "NATS 自 %s 起没有应答。下面是那时的状态，现在可能已不准确。", AwayWhy: "原因", AsOf: "截至 %s",
		PageAway: "已过时：本页收不到服务器的消息，正在自动重试。", Updated: "更新于",
		Blind: "NATS 尚未应答，一切未知。",

		Targets: "目标", Target: "目标", RPO: "RPO 时钟", LastSnapshot: "最近快照", LastProof: "最近验证过的恢复", NextTick: "下次触发",
		UsedOf: "已用 %d%%：%s / %s", AgeOnly: "已有 %s；未设 RPO", NoData: "未知", FirstSeen: "自首次发现该目标起没有快照",
		ExceededBy: "超出 %s：%s / %s",
		Never:      "审计日志中没有", Unseen: "审计日志中没有", None: "无", Ago: "%s前", In: "%s后", Now: "刚刚", RTO: "恢复用时 %s", Took: "用时 %s",
		DataOf: "数据截至 %s", PausedIt: "已暂停",
		Schedules: "计划", Details: "详情", Worst: "第 %d 至 %d 个，共 %d 个，最差的在前", Previous: "上一页", Next: "下一页", Find: "查找",
		FindHint: "目标名称的一部分", NoTargets: "配置中没有目标。", NoMatch: "没有名称含“%s”的目标。",
		SkipTo: "跳到目标列表", Nav: "目标分页",

		Jobs: "运行中的作业", Job: "作业", State: "状态", For: "已进行", NoJobs: "没有等待或运行的作业。", Usually: "上次 %s", WaitJobs: "%d 个等待空闲的 worker",
		StuckJobs: "%d 个在等待，但没有 worker 接手", MoreJobs: "另有 %d 个：lifeboat jobs list",
		Running: "运行中", Committing: "提交中", Waiting: "等待中", Retrying: "将重试", Cancelled: "已取消", NoTaker: "没有 worker 接手",
		NoAnswer:   "其 worker 没有应答",
		Attempt:    "第 %d 次尝试",
		Deliveries: "最近投递", When: "时间", Receiver: "接收方", What: "告警", Outcome: "结果", Lag: "延迟",
		NoDeliveries: "最近一天没有投递告警。", Waits: "%d 条等待投递到 %s",
		Delivered: "已送达", Digest: "已并入摘要", Folded: "没有新内容", HandedOn: "已转交 %s", Dead: "投递失败", UnroutedNow: "%d 条等待路由",
		DeadLetters: "死信", From: "来源", Reason: "原因", NoLetters: "没有死信。", MoreLetters: "另有 %d 封：lifeboat dead list",
		ReadOnly: "本页只读。", TimesAre: "时间为 %s。",

		RPOExceeded: "%s 在 RPO 内没有完好的快照", RPONearly: "%s 的 RPO 即将用尽", SnapshotFailed: "%s 最近一次快照失败",
		VerifyFailed: "%s 存储的快照已损坏或无法读取", DrillFailed: "%s 最近一次恢复演练失败",
		EscrowFailed: "托管密钥未能恢复 %s", CopyFailed: "%s 有快照不在第二存储桶中",
		PruneFailed: "%s 的保留策略无法执行", PruneHeld: "%s 突然变小：确认之前不会删除任何快照",
		SourceWorrying: "%s 的数据源状况不佳", JobRejected: "%s 有一个作业被拒绝", CanaryLate: "接收方 %s 的探测消息未送达",
		AlertMissed: "关于 %s 的一条告警从未到达 Lifeboat", NeverProven: "审计日志中没有演练证明 %s 可以恢复", NoSnapshot: "%s 还没有快照", Paused: "%s：计划 %s 已暂停",
		Missed: "%s：%s 的最近一次触发没有执行", Unreadable: "无法读取：%s",
		NoScheduler: "没有调度器在做决定：%d 个计划已逾期。调度器没有运行，或无法写入 NATS。",
		NoWorker:    "没有 worker 应答：没有任何备份在进行", NoWorkerFor: "没有 worker 接手 %s 作业（目标：%d 个）",
		NoWorkerIn: "区域 %s 没有执行 %s 作业的 worker（目标：%d 个）", Unrouted: "%d 个 webhook 在等待：没有通知服务接手",
		NewLetters: "最近一天新增死信：%d 封", Stuck: "%d 条投递在等待 %s，没有一条送出",
		ProofOld: "%s 最近验证过的恢复所用数据已旧：没有演练证明更新的数据", SnapshotOld: "%s 的最近快照早于两次触发",

		DayUnit: "%d 天", HourUnit: "%d 小时", MinuteUnit: "%d 分", SecondUnit: "%d 秒",
		Works: map[string]string{"snapshot": "快照", "verify": "校验", "drill": "演练", "prune": "清理"},
	}
}

// level is a level in words: colour alone says nothing to who does not see it.
func (w *words) level(l level) string { return [...]string{w.Red, w.Amber, w.Unknown, w.Good}[l] }

// work is a kind of work, or a schedule's name.
func (w *words) work(name string) string {
	if s, ok := w.Works[name]; ok {
		return s
	}
	return name
}

// duration is a length of time with its two largest units.
func (w *words) duration(d time.Duration) string {
	d = max(d, 0)
	days, hours, minutes, seconds := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60, int(d.Seconds())%60
	var parts []string
	for _, u := range []struct {
		form string
		n    int
	}{{w.DayUnit, days}, {w.HourUnit, hours}, {w.MinuteUnit, minutes}, {w.SecondUnit, seconds}} {
		if u.n > 0 || len(parts) > 0 {
			parts = append(parts, fmt.Sprintf(u.form, u.n))
		}
		if len(parts) == 2 {
			if u.n == 0 {
				parts = parts[:1]
			}
			break
		}
	}
	if len(parts) == 0 {
		if d == 0 {
			return fmt.Sprintf(w.SecondUnit, 0)
		}
		return "< " + fmt.Sprintf(w.SecondUnit, 1)
	}
	return strings.Join(parts, " ")
}

// age is a length of time that goes on: in steps that do not change all the time.
func (w *words) age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf(w.SecondUnit, int(max(d, 0)/(5*time.Second))*5)
	case d < time.Hour:
		return w.duration(d.Truncate(time.Minute))
	}
	return w.duration(d)
}

// size is a number of bytes.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
