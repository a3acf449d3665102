package memstore_test

import (
	"testing"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/memstore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/storetest"
)

func TestConformance(t *testing.T) { storetest.Run(t, memstore.New()) }
