BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE nas_measurements (
    trial_id INTEGER NOT NULL REFERENCES trials (trial_id) ON DELETE CASCADE,
    target VARCHAR(200) NOT NULL,
    metric VARCHAR(64) NOT NULL,
    measured DOUBLE PRECISION NOT NULL,
    ci_high DOUBLE PRECISION,
    PRIMARY KEY (trial_id, target, metric)
);
INSERT INTO "nas_measurements" VALUES(2,'onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','latency_ms',2.25,2.5);
CREATE TABLE nas_schema (version INTEGER NOT NULL PRIMARY KEY);
INSERT INTO "nas_schema" VALUES(1);
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'begun-before');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["accuracy", "latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'nas.schema','1');
INSERT INTO "study_user_attributes" VALUES(2,1,'nas.version','"0.1.0"');
INSERT INTO "study_user_attributes" VALUES(3,1,'nas.space','"tiny"');
INSERT INTO "study_user_attributes" VALUES(4,1,'nas.space_digest','"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"');
INSERT INTO "study_user_attributes" VALUES(5,1,'nas.targets','["onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64"]');
INSERT INTO "study_user_attributes" VALUES(6,1,'nas.genes','{"depth": [1, 2, 3], "kernels": [[7, 5], [5, 3]]}');
INSERT INTO "study_user_attributes" VALUES(7,1,'nas.metrics','["latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64", "params"]');
INSERT INTO "study_user_attributes" VALUES(8,1,'nas.budgets','{"latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64": 5.0}');
INSERT INTO "study_user_attributes" VALUES(9,1,'nas.seed','0');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'depth',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2, 3]}}');
INSERT INTO "trial_params" VALUES(2,1,'kernels',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["[7, 5]", "[5, 3]"]}}');
INSERT INTO "trial_params" VALUES(3,2,'depth',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2, 3]}}');
INSERT INTO "trial_params" VALUES(4,2,'kernels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["[7, 5]", "[5, 3]"]}}');
INSERT INTO "trial_params" VALUES(5,3,'depth',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2, 3]}}');
INSERT INTO "trial_params" VALUES(6,3,'kernels',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["[7, 5]", "[5, 3]"]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'constraints:latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','-3.5');
INSERT INTO "trial_system_attributes" VALUES(2,2,'constraints:latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','-2.5');
INSERT INTO "trial_system_attributes" VALUES(3,3,'constraints:latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','-1.5');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','1.5');
INSERT INTO "trial_user_attributes" VALUES(2,1,'params','1000');
INSERT INTO "trial_user_attributes" VALUES(3,1,'loss','0.5');
INSERT INTO "trial_user_attributes" VALUES(4,1,'evaluation_s','0.25');
INSERT INTO "trial_user_attributes" VALUES(5,1,'attempt','1');
INSERT INTO "trial_user_attributes" VALUES(6,1,'architecture_id','"000000000000"');
INSERT INTO "trial_user_attributes" VALUES(7,2,'latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','2.5');
INSERT INTO "trial_user_attributes" VALUES(8,2,'params','2000');
INSERT INTO "trial_user_attributes" VALUES(9,2,'loss','0.25');
INSERT INTO "trial_user_attributes" VALUES(10,2,'evaluation_s','0.25');
INSERT INTO "trial_user_attributes" VALUES(11,2,'attempt','1');
INSERT INTO "trial_user_attributes" VALUES(12,2,'architecture_id','"000000000001"');
INSERT INTO "trial_user_attributes" VALUES(13,3,'latency_ms:onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64','3.5');
INSERT INTO "trial_user_attributes" VALUES(14,3,'params','3000');
INSERT INTO "trial_user_attributes" VALUES(15,3,'reason','"out of memory"');
INSERT INTO "trial_user_attributes" VALUES(16,3,'evaluation_s','0.25');
INSERT INTO "trial_user_attributes" VALUES(17,3,'attempt','1');
INSERT INTO "trial_user_attributes" VALUES(18,3,'architecture_id','"000000000002"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.5,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,1.5,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.75,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,2.5,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-22 09:26:53.811497','2026-11-22 09:26:54.061497');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-22 09:26:53.884770','2026-11-22 09:26:54.134770');
INSERT INTO "trials" VALUES(3,2,1,'FAIL','2026-11-22 09:26:53.906672','2026-11-22 09:26:54.156672');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
CREATE TRIGGER nas_forget_measurements AFTER DELETE ON trials
BEGIN
    DELETE FROM nas_measurements WHERE trial_id = OLD.trial_id;
END;
CREATE VIEW nas_trials AS
SELECT s.study_name AS study, t.number AS trial, CAST(t.state AS VARCHAR(16)) AS state,
       v.value AS accuracy, CAST(l.value_json AS DOUBLE PRECISION) AS loss,
       CAST(CAST(p.value_json AS DOUBLE PRECISION) AS BIGINT) AS params, CAST(CAST(m.value_json AS DOUBLE PRECISION) AS BIGINT) AS macs, CAST(CAST(b.value_json AS DOUBLE PRECISION) AS BIGINT) AS bytes,
       a.value_json AS architecture, t.datetime_complete AS created_at, t.trial_id AS trial_id

FROM trials t
JOIN studies s ON s.study_id = t.study_id
JOIN study_user_attributes n ON n.study_id = t.study_id AND n.key = 'nas.schema'

LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
LEFT JOIN trial_user_attributes l ON l.trial_id = t.trial_id AND l.key = 'loss'
LEFT JOIN trial_user_attributes p ON p.trial_id = t.trial_id AND p.key = 'params'
LEFT JOIN trial_user_attributes m ON m.trial_id = t.trial_id AND m.key = 'macs'
LEFT JOIN trial_user_attributes b ON b.trial_id = t.trial_id AND b.key = 'bytes'
LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'architecture';
CREATE VIEW nas_costs AS
SELECT t.trial_id AS trial_id, CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN SUBSTR(c.key, 12) ELSE '' END AS target, CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN 'latency_ms' ELSE c.key END AS metric,
       CAST(c.value_json AS DOUBLE PRECISION) AS predicted, x.measured AS measured, x.ci_high AS ci_high

FROM trials t
JOIN studies s ON s.study_id = t.study_id
JOIN study_user_attributes n ON n.study_id = t.study_id AND n.key = 'nas.schema'

JOIN trial_user_attributes c ON c.trial_id = t.trial_id
     AND (c.key IN ('latency_ms', 'params', 'macs', 'bytes')
          OR SUBSTR(c.key, 1, 11) = 'latency_ms:')
LEFT JOIN nas_measurements x ON x.trial_id = t.trial_id
     AND x.target = CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN SUBSTR(c.key, 12) ELSE '' END AND x.metric = CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN 'latency_ms' ELSE c.key END;
COMMIT;
