-- A store as schema 1 made it, frozen: two points and an alarm of the run a.
BEGIN TRANSACTION;
CREATE TABLE tailwise_alarms (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	step BIGINT NOT NULL, 
	severity VARCHAR(8) NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (run_id, "key"), 
	FOREIGN KEY(run_id) REFERENCES tailwise_runs (id) ON DELETE CASCADE
);
INSERT INTO "tailwise_alarms" VALUES(1,1,'88093d1a6d513ee570253d908401404afdfdbf6a97ba60524a2ce88afe2d5be8',2,'warning','{"kind": "alarm", "run": "a", "step": 2, "time": 5.0, "rule": "TW401", "severity": "warning", "title": "it drifts", "layers": ["model.layers.0.mlp.up_proj"], "evidence": {"alpha": 7.0}, "since": 1, "remedies": ["clip"]}');
CREATE TABLE tailwise_audits (
	point_id INTEGER NOT NULL, 
	path TEXT, 
	provenance TEXT NOT NULL, 
	facts BLOB NOT NULL, 
	PRIMARY KEY (point_id), 
	FOREIGN KEY(point_id) REFERENCES tailwise_points (id) ON DELETE CASCADE
);
CREATE TABLE tailwise_layouts (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	layers TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (run_id, digest), 
	FOREIGN KEY(run_id) REFERENCES tailwise_runs (id) ON DELETE CASCADE
);
INSERT INTO "tailwise_layouts" VALUES(1,1,'06ae2378a7fb19430771191f2436a10be72c602d266ffb2a210023ae5d0697a5','[["model.layers.0.mlp.up_proj", "mlp_up", 0], ["model.layers.1.mlp.down_proj", "mlp_down", 1]]');
CREATE TABLE tailwise_meta (
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "tailwise_meta" VALUES('schema','1');
CREATE TABLE tailwise_metrics (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "tailwise_metrics" VALUES(1,'alpha');
INSERT INTO "tailwise_metrics" VALUES(2,'norm');
CREATE TABLE tailwise_points (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	step BIGINT NOT NULL, 
	tempo VARCHAR(8) NOT NULL, 
	time FLOAT NOT NULL, 
	layout_id INTEGER NOT NULL, 
	scalars TEXT NOT NULL, 
	notes TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (run_id, step, tempo), 
	FOREIGN KEY(run_id) REFERENCES tailwise_runs (id) ON DELETE CASCADE, 
	FOREIGN KEY(layout_id) REFERENCES tailwise_layouts (id)
);
INSERT INTO "tailwise_points" VALUES(1,1,1,'cheap',1001.0,1,'{"loss": 0.5}','[]');
INSERT INTO "tailwise_points" VALUES(2,1,2,'cheap',1002.0,1,'{"loss": 0.3333333333333333}','[]');
CREATE TABLE tailwise_runs (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "tailwise_runs" VALUES(1,'a',1000.0);
CREATE TABLE tailwise_vectors (
	point_id INTEGER NOT NULL, 
	metric_id INTEGER NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (point_id, metric_id), 
	FOREIGN KEY(point_id) REFERENCES tailwise_points (id) ON DELETE CASCADE, 
	FOREIGN KEY(metric_id) REFERENCES tailwise_metrics (id)
);
INSERT INTO "tailwise_vectors" VALUES(1,1,X'00000000000008400000000000001040');
INSERT INTO "tailwise_vectors" VALUES(1,2,X'000000000000F03F01000000117AF87F');
INSERT INTO "tailwise_vectors" VALUES(2,1,X'00000000000010400000000000001440');
INSERT INTO "tailwise_vectors" VALUES(2,2,X'000000000000F03F01000000117AF87F');
CREATE INDEX tailwise_layouts_run ON tailwise_layouts (run_id);
COMMIT;
