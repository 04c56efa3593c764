package watch

import "time"

// WithoutRegularLooks leaves only the looks that an event brings about.
func (f *Files) WithoutRegularLooks() { f.interval = time.Hour }
