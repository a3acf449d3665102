package notice_test

import (
	"reflect"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

var verb = regexp.MustCompile(`%(\[\d\])?[sd]`)

// verbs of a format, in the order of its arguments.
func verbs(format string) []string {
	all := verb.FindAllString(format, -1)
	slices.SortStableFunc(all, func(a, b string) int {
		if len(a) < 3 || len(b) < 3 {
			return 0
		}
		return int(a[2]) - int(b[2])
	})
	for i, v := range all {
		all[i] = "%" + v[len(v)-1:]
	}
	return all
}

func TestEveryWordIsSetInBothLanguagesAndTakesTheSameArguments(t *testing.T) {
	t.Parallel()
	en, zh := reflect.ValueOf(notice.English()), reflect.ValueOf(notice.Chinese())
	same := []string{"Dot"}
	for i := range en.NumField() {
		name := en.Type().Field(i).Name
		a, b := en.Field(i).String(), zh.Field(i).String()
		assert.NotEmpty(t, a, name)
		assert.NotEmpty(t, b, name)
		assert.Equal(t, verbs(a), verbs(b), name)
		if !slices.Contains(same, name) {
			assert.NotEqual(t, a, b, name)
		}
	}
	assert.Equal(t, "zh", notice.In("zh").Code)
	assert.Equal(t, "en", notice.In("").Code)
}

func TestCountsReadAsPeopleSayThem(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "1 group", notice.English().GroupCount(1))
	assert.Equal(t, "3 groups", notice.English().GroupCount(3))
	assert.Equal(t, "0 alerts", notice.English().AlertCount(0))
	assert.Equal(t, "1 条告警", notice.Chinese().AlertCount(1))
	assert.Equal(t, "12 组", notice.Chinese().GroupCount(12))
}

func TestStatusIsNamedInItsLanguage(t *testing.T) {
	t.Parallel()
	for s, want := range map[notice.Status][2]string{
		notice.Firing: {"FIRING", "告警"}, notice.Resolved: {"RESOLVED", "已恢复"},
		notice.Partial: {"PARTIAL", "部分恢复"}, notice.Event: {"EVENT", "事件"},
	} {
		assert.Equal(t, want, [2]string{notice.English().Status(s), notice.Chinese().Status(s)})
	}
}
